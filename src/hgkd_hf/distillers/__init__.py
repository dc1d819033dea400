"""Distillation methods, one a folder: a config and a `PreTrainedModel` around student, heads and an attached teacher."""
