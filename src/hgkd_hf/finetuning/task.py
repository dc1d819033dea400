"""The settings that all tasks share, and what each task adds to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..data import ImageSource, open_split
from ..students.presets import PRESETS, student_encoder_config
from ..teachers.checkpoint import image_statistics
from .settings import TaskSettings


@dataclass
class Task(TaskSettings, ABC):
    """What is fine-tuned for what, on which images."""

    main_metric: ClassVar[str]
    layer_decay_of_trained: ClassVar[float] = 1.0

    @abstractmethod
    def build_model(self) -> PreTrainedModel:
        """The stock model of the task around `model`, with a fresh head.

        Raises:
            ValueError: `model` does not fit the task, or its checkpoint lacks weights of the encoder.
        """

    @abstractmethod
    def encoder(self, model: PreTrainedModel) -> nn.Module:
        """The pre-trained part of what `build_model` gave."""

    @abstractmethod
    def image_processor(self) -> BaseImageProcessor:
        """What prepares images as the evaluation does; for the task's pipeline."""

    @abstractmethod
    def samples(self, source: ImageSource, train: bool, seed: int, skipped_log: Path | None) -> Dataset:
        """The samples of a split, random ones or those of the evaluation."""

    @abstractmethod
    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Samples to a batch."""

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: dict[str, Any]) -> list[Any]:
        """What `score` needs of each image of an evaluation batch; small, since it is kept of all images."""

    @abstractmethod
    def score(self, predicted: list[Any]) -> dict[str, float]:
        """The task's metrics of what `predict` gave for all images."""

    def class_names_of(self, source: ImageSource) -> Sequence[str] | None:
        """The names that the dataset itself gives to its classes."""
        return source.class_names

    @property
    def columns(self) -> dict[str, str | None]:
        """Which columns hold what, as arguments of `load_images` beside the settings."""
        return {}

    def training_data(self, seed: int, skipped_log: Path | None = None) -> Dataset:
        """Random samples of the training split, keyed by (seed, epoch, index)."""
        return self.samples(self.source, True, seed, skipped_log)

    def evaluation_data(self) -> Dataset | None:
        """Samples of `eval_split`, None without."""
        if self.eval_split is None:
            return None
        source = open_split(self, "eval_split", "max_eval_samples", "target_column", **self.columns)
        return self.samples(source, False, 0, None)

    @cached_property
    def source(self) -> ImageSource:
        """The training split."""
        return open_split(self, labels_field="target_column", **self.columns)

    def fingerprints(self) -> dict[str, str]:
        """What tells that the training split was replaced under its name."""
        return {"images": self.source.fingerprint}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes' names.

        Raises:
            ValueError: nobody names them.
        """
        names = self.class_names or self.class_names_of(self.source)
        if names is None:
            raise ValueError(f"{self.source.name!r} does not name its classes: name them with --class_names.")
        return tuple(names)

    @property
    def label_maps(self) -> dict[str, dict]:
        """`id2label` and `label2id` of a config."""
        id2label = dict(enumerate(self.names))
        return {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}

    @property
    def has_weights(self) -> bool:
        """Whether `model` names a folder or a Hub id, rather than a preset or a config as JSON (random weights)."""
        return self.model not in PRESETS and not self.model.lstrip().startswith("{")

    @property
    def layer_decay(self) -> float:
        """The layer-wise decay of learning rates where none is asked for; random weights have nothing to keep."""
        return self.layer_decay_of_trained if self.has_weights else 1.0

    @cached_property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and std of the channels that the checkpoint wants; ImageNet's where there is none."""
        mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
        if self.has_weights:
            mean, std = image_statistics(self.model, {"revision": self.model_revision})
        return list(mean), list(std)

    def model_config(self) -> PreTrainedConfig:
        """The config of `model`, with the rate of stochastic depth.

        Raises:
            ValueError: the model has no stochastic depth.
        """
        config = student_encoder_config(self.model, self.model_revision)
        encoder_config = config.encoder_config if config.model_type == "sparse_unet" else config
        if hasattr(encoder_config, "drop_path_rate"):
            encoder_config.drop_path_rate = self.drop_path_rate
        elif self.drop_path_rate:
            raise ValueError(
                f"{encoder_config.model_type} models have no stochastic depth: leave --drop_path_rate out."
            )
        return config
