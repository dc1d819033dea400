"""Distillation objectives, one a file: tensors in, a scalar (and named terms) out."""
