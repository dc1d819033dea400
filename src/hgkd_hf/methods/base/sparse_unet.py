"""What distillers share whose student is a CNN that may see a part of its images: a `SparseUNetModel`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, PreTrainedModel
from transformers import initialization as init

from ...sparse.masking import cell_grid, random_cell_mask
from ...students.sparse_unet import SparseUNetConfig
from .distiller import Distiller, DistillerConfig


class SparseUNetDistillerConfig(DistillerConfig):
    """Base of the configurations whose student is a `SparseUNetConfig`; their settings have a `mask_ratio`."""

    sub_configs: ClassVar[dict[str, type]] = {"student_config": SparseUNetConfig}
    default_student = "sparse_unet"

    @property
    def cell_grid(self) -> tuple[int, int]:
        """(rows, columns) of mask cells in a crop."""
        size = self.image_size if isinstance(self.image_size, int) else tuple(self.image_size)
        return cell_grid(size, self.student_config.cell_size)


class SparseUNetDistiller(Distiller):
    """A sparse CNN as student, with a decoder or without, of which the stock CNN leaves."""

    config: SparseUNetDistillerConfig
    supports_gradient_checkpointing = True
    predicts_masked = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.trunc_normal_(module.weight, std=self.config.student_config.initializer_range)

    @property
    def encoder(self) -> PreTrainedModel:
        """The CNN below the decoder."""
        return self.student.encoder

    @property
    def extended_student(self) -> PreTrainedModel | None:
        """Encoder and decoder; None where there is no decoder, and the encoder's stock model is all there is."""
        stock = type(self.encoder.config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
        return None if stock and self.student.decoder is None else self.student

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), for evaluation."""
        return self.student.image_features(pixel_values)

    def to_native(self) -> PreTrainedModel:
        """The student's encoder as a stock transformers model; a copy, in eval mode."""
        return self.student.to_native()

    def random_masks(self, pixel_values: Tensor) -> Tensor:
        """A mask (B, gh, gw) bool of each image, True = hidden, drawn from torch's global generator."""
        masks = [random_cell_mask(self.config.cell_grid, self.config.mask_ratio) for _ in pixel_values]
        return torch.stack(masks).to(pixel_values.device)

    def describe_student(self) -> str:
        """One line on encoder and what is trained beside it."""
        weights = self.encoder.num_parameters()
        others = self.num_parameters(only_trainable=True) - weights
        return (
            f"{type(self.encoder).__name__}, {weights / 1e6:.1f} M parameters, stride {self.student.total_stride}; "
            f"{'heads' if self.student.decoder is None else 'decoder and heads'} {others / 1e6:.2g} M"
        )
