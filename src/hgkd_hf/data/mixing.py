"""Mixup, cutmix and label smoothing, as functions of (seed, epoch, index) like every other augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Mixing:
    """Mixes a sample with another one, and their labels in the same proportion.

    Mixup (Zhang et al. 2018, arXiv:1710.09412) adds the two images; cutmix (Yun et al. 2019, arXiv:1905.04899) pastes
    a rectangle of the other into the one. With both, each sample draws one of them. The partner is any row of the
    dataset rather than a neighbour in the batch, which would tie a sample to the number of processes; reading it
    costs a second decoding.

    Attributes:
        num_labels: number of classes.
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the proportion is drawn from; 0 = none.
        label_smoothing: e spreads a share e of every label over all classes.

    Raises:
        ValueError: a value is out of range.
    """

    num_labels: int
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must not be negative (--{name}).")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}, but it must be in [0, 1).")

    @property
    def needs_partner(self) -> bool:
        """Whether a second sample is mixed in at all."""
        return bool(self.mixup or self.cutmix)

    def soft_label(self, label: int) -> Tensor:
        """(num_labels,) probabilities of a class."""
        probabilities = torch.full((self.num_labels,), self.label_smoothing / self.num_labels)
        probabilities[label] += 1 - self.label_smoothing
        return probabilities

    def mix(self, pixels: Tensor, partner: Tensor, generator: Generator) -> tuple[Tensor, float]:
        """Mix two images (3, H, W) uint8; returns the mixture and the first one's share of it, in [0, 1]."""
        coin = torch.rand((), generator=generator).item()
        cut = bool(self.cutmix) and (not self.mixup or coin < 0.5)
        alpha = self.cutmix if cut else self.mixup
        # torch draws no Beta from a generator of ours.
        seed = int(torch.randint(2**62, (), generator=generator))
        share = float(np.random.default_rng(seed).beta(alpha, alpha))
        if not cut:
            return (share * pixels + (1 - share) * partner).round().to(torch.uint8), share
        height, width = pixels.shape[1:]
        side = math.sqrt(1 - share)
        row, column = (
            torch.rand(2, generator=generator, dtype=torch.float64) * torch.tensor([height, width])
        ).tolist()
        top, bottom = (min(max(round(row + sign * side * height / 2), 0), height) for sign in (-1, 1))
        left, right = (min(max(round(column + sign * side * width / 2), 0), width) for sign in (-1, 1))
        mixed = pixels.clone()
        mixed[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)
