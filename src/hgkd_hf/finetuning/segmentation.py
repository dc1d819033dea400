"""Semantic segmentation: UPerNet on the student as backbone, or the student's own pre-trained UNet decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, SegformerImageProcessorPil, UperNetConfig, UperNetForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor

from ..data import ImageSource
from ..data.access import ANYWHERE, ImageAccess
from ..data.decode import CorruptImageError
from ..students.features import feature_scales
from ..students.sparse_unet import SparseUNetConfig, SparseUNetForSemanticSegmentation
from .dense import DenseTask, backbone_config, load_backbone_weights
from .geometry import Placement
from .masks import IGNORED, UNKNOWN, ClassValues, MaskSurvey, check_size, read_pixel_values
from .settings import SemanticSegmentationSettings


@dataclass
class SemanticSegmentation(SemanticSegmentationSettings, DenseTask):
    """One class a pixel; masks are single-band images of class numbers."""

    main_metric: ClassVar[str] = "mean_iou"
    default_target_column: ClassVar[str] = "mask"
    layer_decay_of_trained: ClassVar[float] = 0.7  # docs/results.md, "Segmentation"

    def build_model(self) -> PreTrainedModel:
        """The student with its decoder kept for a `sparse_unet` checkpoint, UPerNet around any other CNN."""
        config = self.model_config()
        if config.model_type == "sparse_unet":
            settings = {"decoder_stride": self.decoder_stride, "encoder_config": config.encoder_config.to_dict()}
            settings |= {"semantic_loss_ignore_index": IGNORED, **self.label_maps}
            if self.has_weights:
                return SparseUNetForSemanticSegmentation.from_student(
                    self.model, revision=self.model_revision, **settings
                )
            return SparseUNetForSemanticSegmentation(SparseUNetConfig(**(config.to_dict() | settings)))
        num_maps = len(feature_scales(config))
        model = UperNetForSemanticSegmentation(
            UperNetConfig(
                backbone_config=backbone_config(config),
                hidden_size=self.head_width,
                auxiliary_channels=max(1, self.head_width // 2),
                use_auxiliary_head=num_maps > 2,  # it reads the third map
                loss_ignore_index=IGNORED,
                **self.label_maps,
            )
        )
        if self.has_weights:
            load_backbone_weights(model.backbone, self.model, self.model_revision)
        return model

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The pre-trained part of the model."""
        keeps_decoder = isinstance(model, SparseUNetForSemanticSegmentation)
        return model.sparse_unet.encoder if keeps_decoder else model.backbone

    def image_processor(self) -> BaseImageProcessor:
        """What prepares images as the evaluation does, and turns logits into maps."""
        height, width = self.size
        mean, std = self.normalisation
        return SegformerImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=std)

    @cached_property
    def class_values(self) -> ClassValues:
        """Which pixel value is which class."""
        return ClassValues(self.names, self.mask_values, self.ignore_index)

    def survey(self, source: ImageSource) -> MaskSurvey:
        """Counts the values of masks."""
        return MaskSurvey(self.class_values, source.access)

    def target_reader(self, source: ImageSource) -> Callable[[Any, Image.Image, str], np.ndarray]:
        """`read_mask` of the files that the split may name."""
        return partial(self.read_mask, access=source.access)

    def train_sample(self, target: np.ndarray, place: Placement) -> dict[str, Tensor]:
        """`labels` (H, W) int64 of the canvas, `IGNORED` where they do not count."""
        return {"labels": place.mask(target, IGNORED)}

    def eval_sample(self, target: np.ndarray, image: Image.Image) -> dict[str, Tensor]:
        """`labels` int64 of the mask's own size."""
        return {"labels": torch.from_numpy(target.astype(np.int64))}

    def read_mask(self, value: Any, image: Image.Image, name: str, access: ImageAccess = ANYWHERE) -> np.ndarray:
        """A row's mask as classes (H, W) int32, `IGNORED` where pixels do not count.

        Args:
            value: in a form that `masks.read_pixel_values` knows.
            image: the upright image.
            name: what an error calls the row.
            access: where files that rows name may lie.

        Raises:
            CorruptImageError: it is no map of class numbers, not of the image's size, or holds a value of no class.
        """
        pixels = read_pixel_values(value, name, access)
        check_size(pixels, image.width, image.height, name)
        classes = self.class_values.to_classes(pixels)
        unknown = classes == UNKNOWN
        if unknown.any():
            raise CorruptImageError(
                f"{name}: the mask holds the value {pixels[unknown].max()}, which is of no class: there are "
                f"{len(self.names)} (--class_names, --ignore_index, --mask_values)."
            )
        return classes

    def predict(self, model: PreTrainedModel, batch: dict[str, Any]) -> list[Tensor]:
        """`pixel_counts` of each image, at the size of its mask."""
        from ..evaluation.segmentation import pixel_counts

        logits = model(pixel_values=batch["pixel_values"]).logits.float()
        counts = []
        for scores, labels in zip(logits, batch["labels"]):
            resized = F.interpolate(scores[None], labels.shape, mode="bilinear", align_corners=False)[0]
            counts.append(pixel_counts(resized.argmax(0), labels, len(self.names), IGNORED))
        return counts

    def score(self, predicted: list[Tensor]) -> dict[str, float]:
        """Mean IoU over the classes that occur, and that of each class."""
        from ..evaluation.segmentation import intersection_over_union

        mean, per_class = intersection_over_union(sum(predicted))
        return {"mean_iou": mean} | {f"iou_{name}": value for name, value in zip(self.names, per_class)}
