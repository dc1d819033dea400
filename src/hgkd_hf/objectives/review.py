"""ReviewKD: every level of the student, with all deeper ones reviewed in it, imitates the teacher's level.

Chen, Liu, Zhao, Jia 2021, "Distilling Knowledge via Knowledge Review" (arXiv:2104.09044).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDEST = 512  # channels of the maps that are handed from level to level, at most


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL: the mean squared error of two maps and of their 4x4, 2x2 and 1x1 average pools, as a scalar.

    The weights are 1, 1/2, 1/4, 1/8, divided by their sum; pools that are not smaller than the map are left out (and
    the next one takes their weight).

    Args:
        student: (B, C, h, w).
        teacher: (B, C, h, w), constant.

    Raises:
        ValueError: the shapes differ.
    """
    if student.dim() != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"student map {tuple(student.shape)} and teacher map {tuple(teacher.shape)} must both be (B, C, h, w)."
        )
    sides = [side for side in (4, 2, 1) if side < min(student.shape[2:])]
    pairs = [(student, teacher), *([F.adaptive_avg_pool2d(m, side) for m in (student, teacher)] for side in sides)]
    weights = [0.5**index for index in range(len(pairs))]
    errors = (weight * F.mse_loss(ours, theirs.detach()) for weight, (ours, theirs) in zip(weights, pairs))
    return sum(errors) / sum(weights)


class AttentionFusion(nn.Module):
    """ABF: a student's map and what was reviewed of the deeper ones, weighted at every position by their attention.

    Args:
        channels: C, of the student's map.
        width: of what is reviewed.
        teacher_channels: D, of the teacher's map.
        deepest: whether no deeper map is handed over.
    """

    def __init__(self, channels: int, width: int, teacher_channels: int, deepest: bool):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = None if deepest else nn.Conv2d(2 * width, 2, 1)
        self.expand = nn.Sequential(
            nn.Conv2d(width, teacher_channels, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )

    def forward(self, student: Tensor, deeper: Tensor | None, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Fuse the map (B, C, h, w) with the deeper review (B, width, h', w').

        Returns:
            (B, D, *grid), to be compared with the teacher's map of that grid, and (B, width, *grid), the review that
            is handed to the next finer level.
        """
        fused = self.reduce(student)
        if self.attention is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            ours, theirs = self.attention(torch.cat([fused, deeper], 1)).sigmoid().split(1, dim=1)
            fused = ours * fused + theirs * deeper
        fused = F.interpolate(fused, tuple(grid), mode="nearest")
        return self.expand(fused), fused


class Review(nn.Module):
    """The fusions of all levels, from the deepest, which is the last maps' mean, to the finest.

    Args:
        student_channels: of the student's maps, finest first.
        teacher_channels: of the teacher's, as many.
    """

    def __init__(self, student_channels: Sequence[int], teacher_channels: Sequence[int]):
        super().__init__()
        width = min(WIDEST, student_channels[-1])
        pairs = [*zip(student_channels, teacher_channels), (student_channels[-1], teacher_channels[-1])]
        self.levels = nn.ModuleList(
            AttentionFusion(ours, width, theirs, deepest=index == len(pairs) - 1)
            for index, (ours, theirs) in enumerate(pairs)
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Review the student's maps, and pair them with the teacher's.

        Args:
            student: (B, C_i, h_i, w_i), finest first.
            teacher: (B, D_i, H_i, W_i), as many.

        Returns:
            Of each level, finest first and the pooled one last, the student's reviewed map and the teacher's, of one
            shape.
        """
        students, teachers = ([*maps, maps[-1].mean((2, 3), keepdim=True)] for maps in (student, teacher))
        pairs, deeper = [], None
        for level, ours, theirs in reversed(list(zip(self.levels, students, teachers))):
            reviewed, deeper = level(ours, deeper, theirs.shape[2:])
            pairs.insert(0, (reviewed, theirs))
        return pairs
