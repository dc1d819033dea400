"""Semantic segmentation: UPerNet on the student as backbone, or the student's own pre-trained UNet decoder."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, SegformerImageProcessorPil, UperNetConfig, UperNetForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor

from ..students.features import feature_scales
from ..students.sparse_unet import SparseUNetConfig, SparseUNetForSemanticSegmentation
from .dense import DenseTask, backbone_config, load_backbone_weights
from .geometry import Placement

IGNORED = 255  # what losses and processors of transformers ignore


@dataclass
class SemanticSegmentation(DenseTask):
    """One class a pixel; masks are single-band images of class numbers."""

    main_metric: ClassVar[str] = "mean_iou"
    default_target_column: ClassVar[str] = "mask"

    ignore_index: int = field(default=IGNORED, metadata={"help": "Value of mask pixels that do not count."})
    decoder_stride: int = field(
        default=4, metadata={"help": "Pixels per position where a kept decoder ends and the classifier begins."}
    )

    def build_model(self) -> PreTrainedModel:
        """The student with its decoder kept for a `sparse_unet` checkpoint, UPerNet around any other CNN."""
        config = self.model_config()
        if config.model_type == "sparse_unet":
            settings = {"decoder_stride": self.decoder_stride, "encoder_config": config.encoder_config.to_dict()}
            settings |= self.label_maps
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
        return model.backbone if hasattr(model, "backbone") else model.sparse_unet.encoder

    def image_processor(self) -> BaseImageProcessor:
        """What prepares images as the evaluation does, and turns logits into maps."""
        height, width = self.size
        mean, std = self.normalisation
        return SegformerImageProcessorPil(size={"height": height, "width": width}, image_mean=mean, image_std=std)

    def train_sample(self, image: Image.Image, target: Any, place: Placement, name: str) -> dict[str, Tensor]:
        """`labels` (H, W) of the canvas, 255 where they do not count."""
        return {"labels": place.mask(self.read_mask(target, image, name), IGNORED)}

    def eval_sample(self, image: Image.Image, target: Any, name: str) -> dict[str, Tensor]:
        """`labels` of the mask's own size."""
        return {"labels": torch.from_numpy(self.read_mask(target, image, name).astype(np.int64))}

    def read_mask(self, value: Any, image: Image.Image, name: str) -> np.ndarray:
        """A row's mask as class numbers (H, W), ignored pixels as 255.

        Raises:
            ValueError: it is no map of class numbers, not of the image's size, or holds a class that has no name.
        """
        file = Image.open(io.BytesIO(value["bytes"]) if value["bytes"] is not None else value["path"])
        classes = np.array(file)
        if classes.ndim != 2:
            raise ValueError(f"{name}: the mask has mode {file.mode}, but a single band of classes is needed.")
        if classes.shape != (image.height, image.width):
            raise ValueError(
                f"{name}: the mask has {classes.shape[1]}x{classes.shape[0]} pixels, the image "
                f"{image.width}x{image.height}: they must agree."
            )
        ignored = classes == self.ignore_index
        highest = int(np.where(ignored, 0, classes).max())
        if highest >= len(self.names):
            raise ValueError(
                f"{name}: the mask holds class {highest}, but there are {len(self.names)}: name more "
                f"--class_names, or set --ignore_index {highest}."
            )
        return np.where(ignored, IGNORED, classes).astype(np.uint8)

    def predict(self, model: PreTrainedModel, batch: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(predicted, labelled) class map of each image, at the size of its mask."""
        logits = model(pixel_values=batch["pixel_values"]).logits.float()
        pairs = []
        for scores, labels in zip(logits, batch["labels"]):
            resized = F.interpolate(scores[None], labels.shape, mode="bilinear", align_corners=False)[0]
            pairs.append(tuple(x.to(torch.uint8).cpu().numpy() for x in (resized.argmax(0), labels)))
        return pairs

    def score(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
        """Mean IoU over the classes that occur, and that of each class."""
        from ..evaluation.metrics import MeanIoU

        predictions, references = zip(*pairs)
        metric = MeanIoU(len(self.names), ignore_index=IGNORED, keep_in_memory=True)
        result = metric.compute(predictions=predictions, references=references)
        ious = dict(zip(self.names, result["per_class_iou"]))
        return {"mean_iou": result["mean_iou"]} | {f"iou_{name}": value for name, value in ious.items()}
