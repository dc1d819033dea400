"""Image classification on the stock head of any model of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data import DistillationDataset, EvaluationDataset, ImageSource, ImageTransform, collate
from ..hub import student_image_processor
from ..students.classifier_layers import build_classifier
from .models import check_loaded, has_weights, label_maps, model_config, set_drop_path


@dataclass(frozen=True)
class ImageClassification:
    """One label an image.

    Attributes:
        class_names: of the classes, by integer.
        image_size: of the crops in pixels.
        crop_scale, flip_probability, color_jitter: of `ImageTransform`, in training.
        crop_fraction: share of the resized image that an evaluation crop keeps.
        label_smoothing: of the cross-entropy.
        drop_path_rate: of models with stochastic depth.
        image_mean, image_std: normalisation of the channels.
    """

    name: ClassVar[str] = "image-classification"
    main_metric: ClassVar[str] = "top1_accuracy"

    class_names: tuple[str, ...]
    image_size: int = 224
    crop_scale: tuple[float, float] = (0.25, 1.0)
    flip_probability: float = 0.5
    color_jitter: float = 0.0
    crop_fraction: float = 1.0
    label_smoothing: float = 0.0
    drop_path_rate: float = 0.0
    image_mean: tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def build_model(self, model: str, revision: str | None = None) -> PreTrainedModel:
        """`AutoModelForImageClassification` with a fresh head, from a checkpoint or, random, from a config.

        Raises:
            ValueError: the checkpoint lacks weights of the encoder, or the model has no such head.
        """
        config = model_config(model, revision)
        for key, value in label_maps(self.class_names).items():
            setattr(config, key, value)
        set_drop_path(config, self.drop_path_rate)
        if has_weights(model):
            built, loading = AutoModelForImageClassification.from_pretrained(
                model,
                config=config,
                revision=revision,
                ignore_mismatched_sizes=True,  # another head's classes
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            check_loaded(model, loading["missing_keys"], f"{built.base_model_prefix}.")
        else:
            built = build_classifier(config)
        built.loss_function = self.loss
        return built

    def loss(self, labels: Tensor, logits: Tensor | None = None, config=None, **kwargs) -> Tensor:
        """Cross-entropy of logits (B, classes) with labels (B,) or, mixed, (B, classes); a model's `loss_function`."""
        logits = kwargs["pooled_logits"] if logits is None else logits
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The pre-trained part of the model."""
        return model.base_model

    def image_processor(self) -> BaseImageProcessor:
        """What prepares images as the evaluation does."""
        return student_image_processor(self.image_size, self.image_mean, self.image_std, self.crop_fraction)

    def dataset(self, source: ImageSource, *, train: bool, seed: int) -> Dataset:
        """Samples with `pixel_values` and `labels`.

        Raises:
            ValueError: the source has no labels, or one outside the classes.
        """
        if source.label_column is not None:
            labels = source.dataset.unique(source.label_column)
            if min(labels) < 0 or max(labels) >= len(self.class_names):
                raise ValueError(
                    f"split {source.split!r} of {source.name!r} holds labels from {min(labels)} to {max(labels)}, but "
                    f"there are {len(self.class_names)} classes: leave unlabelled rows out or name more --class_names."
                )
        transform = ImageTransform(
            self.image_size,
            train=train,
            crop_scale=self.crop_scale,
            flip_probability=self.flip_probability,
            color_jitter=self.color_jitter,
            crop_fraction=self.crop_fraction,
            image_mean=self.image_mean,
            image_std=self.image_std,
        )
        if not train:
            return EvaluationDataset(source, transform)
        return DistillationDataset(source, transform, seed=seed, cell_grid=None, mask_ratio=0.0, return_labels=True)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Samples to a batch."""
        return collate(samples)

    def predict(self, model: PreTrainedModel, batch: dict[str, Tensor]) -> list[tuple[Tensor, int]]:
        """(scores (classes,), label) of each image."""
        logits = model(pixel_values=batch["pixel_values"]).logits.float().cpu()
        return list(zip(logits, batch["labels"].tolist()))

    def score(self, pairs: list[tuple[Tensor, int]]) -> dict[str, float]:
        """Top-1 accuracy and, with more than five classes, top-5."""
        from ..evaluation.metrics import TopKAccuracy  # brings `evaluate` in, which training alone does not need

        scores, labels = zip(*pairs)
        ks = (1, 5) if len(self.class_names) > 5 else (1,)
        return TopKAccuracy(k=ks, keep_in_memory=True).compute(predictions=torch.stack(scores), references=labels)
