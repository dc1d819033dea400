"""SSKD: how the teacher relates rotated images to upright ones is what the student learns beside its classes.

Xu, Liu, Li, Loy 2020, "Knowledge Distillation Meets Self-Supervision" (arXiv:2006.07114).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .logit_distillation import soft_distillation_loss


def rotations(images: Tensor) -> Tensor:
    """Images (B, C, S, S) upright, then all turned by 90, by 180 and by 270 degrees: (4B, C, S, S).

    Raises:
        ValueError: the images are not square.
    """
    if images.shape[-2] != images.shape[-1]:
        height, width = images.shape[-2:]
        raise ValueError(f"images that are turned must be square, but they are {height}x{width}.")
    return torch.cat([images.rot90(quarters, (2, 3)) for quarters in range(4)])


def view_similarities(features: Tensor) -> Tensor:
    """Cosines (3B, B) of the turned views with the upright ones, from the features (4B, D) of `rotations`."""
    upright, turned = F.normalize(features, dim=1).tensor_split([len(features) // 4])
    return turned @ upright.mT


def similarity_loss(student: Tensor, teacher: Tensor, temperature: float = 0.5, wrong_share: float = 0.75) -> Tensor:
    """temperature^2 * KL(teacher || student) of which upright image a turned one resembles, mean over views kept.

    A view is one that the teacher understands if it resembles its own image most. Of the other views those are kept
    that rank their own image best, a share of `wrong_share`, rounded down.

    Args:
        student: (3B, B) cosines of `view_similarities`; row i is of image i modulo B.
        teacher: (3B, B), constant.
        temperature: divides the cosines.
        wrong_share: between 0 and 1. If no view is left the loss is 0.

    Raises:
        ValueError: the shapes are not (3B, B).
    """
    views, images = teacher.shape
    if student.shape != teacher.shape or views != 3 * images:
        raise ValueError(
            f"student similarities {tuple(student.shape)} and teacher similarities {tuple(teacher.shape)} must both "
            f"be (3B, B)."
        )
    own = teacher.gather(1, torch.arange(views, device=teacher.device)[:, None] % images)
    rank = (teacher > own).sum(1)
    right = int((rank == 0).sum())
    kept = rank.argsort(stable=True)[: right + int(wrong_share * (views - right))]
    if not len(kept):
        return 0 * student.sum()
    return soft_distillation_loss(student[kept], teacher[kept], temperature)
