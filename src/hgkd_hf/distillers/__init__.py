"""Distillation methods, one a folder: a config, and a model around student, heads and an attached teacher."""
