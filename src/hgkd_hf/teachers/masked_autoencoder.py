"""A teacher of one's own: transformers' masked autoencoder (MAE, arXiv 2111.06377) as the trainer calls it."""

from __future__ import annotations

from torch import Tensor
from transformers import ViTMAEForPreTraining
from transformers.utils import ModelOutput


class MaskedAutoencoder(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining` that looks for nothing in a batch but its images."""

    def forward(self, pixel_values: Tensor, **kwargs) -> ModelOutput:
        """The loss of images (B, 3, H, W) of the config's size."""
        return super().forward(pixel_values, interpolate_pos_encoding=False)
