"""Image classification on the stock head of any model of transformers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data import (
    DistillationDataset,
    EvaluationDataset,
    ImageSource,
    ImageTransform,
    Mixing,
    align_classes,
    collate,
    labelled,
    shared_images,
)
from ..hub import student_image_processor
from ..students.classifier_layers import build_classifier
from ..students.presets import student_encoder_config
from .settings import ImageClassificationSettings
from .task import Task

logger = logging.getLogger(__name__)


@dataclass
class ImageClassification(ImageClassificationSettings, Task):
    """One label an image."""

    main_metric: ClassVar[str] = "top1_accuracy"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in the order of a checkpoint that has learned the same classes.

        Raises:
            ValueError: there are no labels, or nobody names the classes.
        """
        if self.source.label_column is None:
            labelled(self.source)  # says what is in the way
        names = super().names
        if self.has_weights:
            learned = student_encoder_config(self.model, self.model_revision).id2label
            learned = tuple(learned[number] for number in sorted(learned))
            return learned if sorted(learned) == sorted(names) else names
        return names

    def build_model(self) -> PreTrainedModel:
        """`AutoModelForImageClassification`."""
        config = self.model_config()
        for key, value in self.label_maps.items():
            setattr(config, key, value)
        if not self.has_weights:
            model = build_classifier(config)
        else:
            model, loading = AutoModelForImageClassification.from_pretrained(
                self.model,
                config=config,
                revision=self.model_revision,
                ignore_mismatched_sizes=True,  # a head for other classes
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            holes = [key for key in loading["missing_keys"] if key.startswith(f"{model.base_model_prefix}.")]
            if holes:
                raise ValueError(f"checkpoint {self.model!r} lacks {min(holes)} of the encoder (--model).")
        model.loss_function = soft_cross_entropy
        return model

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """All but the head."""
        return model.base_model

    def image_processor(self) -> BaseImageProcessor:
        """Short side, centre crop, normalisation."""
        return student_image_processor(self.image_size, *self.normalisation, self.crop_fraction)

    def samples(self, source: ImageSource, train: bool, seed: int, skipped_log: Path | None) -> Dataset:
        """Samples with `pixel_values` (3, H, W) and `labels`, in training as (classes,) probabilities.

        Raises:
            ValueError: the source has no labels, or other classes; see `align_classes`.
        """
        owner = "--class_names" if self.class_names else f"split {self.split!r}"
        source = align_classes(source, self.names, owner)
        if not train and (shared := shared_images(self.source, source))[0]:
            logger.warning("%d of %d images looked at of split %r are trained on.", *shared, source.split)
        mean, std = self.normalisation
        transform = ImageTransform(
            self.image_size,
            train=train,
            crop_scale=tuple(self.crop_scale),
            flip_probability=self.flip_probability,
            color_jitter=self.color_jitter,
            crop_fraction=self.crop_fraction,
            image_mean=tuple(mean),
            image_std=tuple(std),
        )
        if not train:
            return EvaluationDataset(source, transform)
        mixing = Mixing(len(self.names), self.mixup, self.cutmix, self.label_smoothing)
        return DistillationDataset(
            source, transform, seed=seed, return_labels=True, mixing=mixing, skipped_log=skipped_log
        )

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Samples to a batch."""
        return collate(samples)

    def predict(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """(scores (classes,), label) of each image."""
        logits = model(pixel_values=batch["pixel_values"]).logits.float().cpu()
        return list(zip(logits, batch["labels"].tolist()))

    def score(self, pairs: list[tuple[Tensor, int]]) -> dict[str, float]:
        """Top-1 accuracy and, with more than five classes, top-5."""
        from ..evaluation.metrics import TopKAccuracy  # brings in `evaluate`, which training alone does not need

        scores, labels = zip(*pairs)
        metric = TopKAccuracy(k=(1, 5) if len(self.names) > 5 else (1,), keep_in_memory=True)
        return metric.compute(predictions=torch.stack(scores), references=labels)


def soft_cross_entropy(labels: Tensor, logits: Tensor | None = None, config=None, **kwargs) -> Tensor:
    """Cross-entropy of logits (B, classes) with labels (B,) or probabilities (B, classes): a model's `loss_function`.

    Models of transformers call theirs with `logits` or `pooled_logits`.
    """
    logits = kwargs["pooled_logits"] if logits is None else logits
    return F.cross_entropy(logits.float(), labels)
