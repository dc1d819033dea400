"""What methods that learn from labels share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

from ...data import Mixing, class_names
from .settings import Method


@dataclass
class LabelledMethod(Method):
    """A classifier is distilled: the student's classes are the dataset's."""

    crop_scale: list[float] = field(
        default_factory=lambda: [0.08, 1.0], metadata={"help": "Share of the area cropped."}
    )
    color_jitter: float = field(default=0.0, metadata={"help": "Of brightness, contrast and saturation."})
    mixup: float = field(default=0.0, metadata={"help": "Alpha of mixup's Beta distribution; 0: none."})
    cutmix: float = field(default=0.0, metadata={"help": "Alpha of cutmix's Beta distribution; 0: none."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Share of a label spread over all classes."})

    def student_config(self) -> PreTrainedConfig:
        """The student's config, with the dataset's classes."""
        config = super().student_config()
        names = class_names(self.source)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: index for index, name in enumerate(names)}
        return config

    def training_data(self, model: PreTrainedModel, seed: int, skipped_log: Path) -> Dataset:
        """One crop of every image and its label, mixed with another image's where that is asked for."""
        mixing = None
        if self.mixup or self.cutmix or self.label_smoothing:
            classes = model.student.config.num_labels
            mixing = Mixing(classes, self.mixup, self.cutmix, self.label_smoothing)
        transform = self.crop(model, color_jitter=self.color_jitter)
        return self.dataset_of(transform, seed, skipped_log, return_labels=True, mixing=mixing)
