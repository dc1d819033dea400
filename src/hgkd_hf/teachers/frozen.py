"""What all teachers share: a network that is never trained, and its own view of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """A frozen network in eval mode, with its own normalisation of RGB values in [0, 1].

    Args:
        model: taken over and frozen for good.
        image_mean, image_std: its normalisation; kept as buffers (1, 3, 1, 1) that no checkpoint holds.
        name_or_path, revision: where the weights came from; kept for configs, cards and messages.
        teacher_input: what it sees of a masked image: see `PatchTeacher`.
    """

    def __init__(
        self,
        model: nn.Module,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        name_or_path: str | None,
        revision: str | None,
        teacher_input: str = "full",
    ):
        super().__init__()
        self.name_or_path, self.revision, self.teacher_input = name_or_path, revision, teacher_input
        self.model = model.requires_grad_(False).eval()
        for key, values in (("image_mean", image_mean), ("image_std", image_std)):
            statistics = torch.tensor(values, dtype=torch.float32, device=self._weight.device).view(1, 3, 1, 1)
            self.register_buffer(key, statistics, persistent=False)

    @property
    def _weight(self) -> Tensor:
        return next(self.model.parameters())

    def num_parameters(self) -> int:
        """Number of weights kept."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: a teacher has no dropout, whatever its owner does."""
        return super().train(False)

    def normalise(self, images: Tensor, image_size: tuple[int, int] | None) -> Tensor:
        """RGB images (B, 3, H, W) in [0, 1], resized to `image_size` if need be, as the model's pixel values."""
        images = images.float()
        if image_size is not None and tuple(images.shape[-2:]) != image_size:
            images = F.interpolate(images, image_size, mode="bicubic", antialias=True).clamp(0, 1)
        return ((images - self.image_mean) / self.image_std).to(self._weight.dtype)
