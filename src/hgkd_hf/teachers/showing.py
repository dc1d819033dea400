"""Showing a teacher what a student sees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .classifier_teacher import ClassifierTeacher
from .cnn_teacher import CNNTeacher
from .patch_teacher import PatchTeacher


def unnormalize(pixel_values: Tensor, image_mean: Sequence[float], image_std: Sequence[float]) -> Tensor:
    """Normalised images (B, 3, H, W) as RGB in [0, 1], of the same shape."""
    mean, std = (pixel_values.new_tensor(values).view(1, -1, 1, 1) for values in (image_mean, image_std))
    return (pixel_values * std + mean).clamp(0, 1)


@torch.no_grad()
def show(
    teacher: PatchTeacher | CNNTeacher | ClassifierTeacher,
    pixel_values: Tensor,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    bool_masked_pos: Tensor | None = None,
) -> ModelOutput:
    """What a teacher sees in images normalised for a student, whose normalisation is undone: a teacher has its own.

    Args:
        teacher: moved to the images' device.
        pixel_values: (B, 3, H, W), normalised.
        image_mean, image_std: of that normalisation.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.
    """
    parameter = next(teacher.parameters(), None)
    if parameter is not None and parameter.device != pixel_values.device:
        teacher.to(pixel_values.device)
    with torch.autocast(pixel_values.device.type, enabled=False):  # the teacher's dtype is its own
        return teacher(unnormalize(pixel_values, image_mean, image_std), bool_masked_pos)
