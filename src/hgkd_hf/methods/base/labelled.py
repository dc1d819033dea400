"""What commands of methods that learn from labels share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from ...data import Mixing, class_names
from .command_settings import LabelledCommandSettings
from .image_classification import ImageClassificationDistiller
from .method import Method


@dataclass
class LabelledMethod(LabelledCommandSettings, Method):
    """A classifier is distilled: the student's classes are the dataset's."""

    def student_config(self) -> PreTrainedConfig:
        """The student's config, with the dataset's classes."""
        config = super().student_config()
        names = class_names(self.source)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        return config

    def training_data(self, model: ImageClassificationDistiller, seed: int, skipped_log: Path | None) -> Dataset:
        """One crop of every image and its label, mixed with another image's where that is asked for."""
        mixing = None
        if self.mixup or self.cutmix or self.label_smoothing:
            classes = model.student.config.num_labels
            mixing = Mixing(classes, self.mixup, self.cutmix, self.label_smoothing)
        transform = self.crop(model, color_jitter=self.color_jitter)
        return self.dataset_of(transform, seed, skipped_log, return_labels=True, mixing=mixing)
