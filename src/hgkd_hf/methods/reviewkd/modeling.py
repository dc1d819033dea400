"""ReviewKD (arXiv:2104.09044): an image classifier's maps, reviewed level by level, imitate a frozen teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import ModelOutput

from ...objectives.review import Review, hierarchical_context_loss
from ...students.classifier_layers import logits_and_maps
from ..base.distiller import DistillerConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller, paired_layers
from .settings import ReviewKDSettings


class ReviewKDConfig(ReviewKDSettings, DistillerConfig):
    """Configuration of `ReviewKDForImageClassification`: `DistillerConfig`, `ReviewKDSettings`, and one field.

    Args:
        teacher_hidden_sizes: channels of the teacher's maps, one for each of `teacher_layers`.
    """

    model_type = "reviewkd"

    teacher_layers: list[int] | tuple[int, ...] = (-1,)
    teacher_hidden_sizes: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        strides = [layer.stride for layer in paired_layers(self)]
        if not strides or strides != sorted(strides):
            raise ValueError(
                f"student_layers are {tuple(self.student_layers)}, with maps of {strides} pixels a position, but the "
                f"finest must come first (--student_layers)."
            )

    @classmethod
    def fields_of_teacher(cls, teacher: Teacher) -> dict[str, Any]:
        """With the widths of its maps."""
        return super().fields_of_teacher(teacher) | {"teacher_hidden_sizes": list(teacher.hidden_sizes)}


@dataclass
class ReviewKDOutput(ModelOutput):
    """Output of `ReviewKDForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy with the labels.
        review: scalar, the hierarchical context losses of all levels.
        ramp: scalar in [0, 1], the factor of the review's weight while it warms up.
        logits: (B, num_labels), the student's.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    review: Tensor | None = None
    ramp: Tensor | None = None
    logits: Tensor | None = None


class ReviewKDForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student, the fusions of its levels and, attached from outside, a teacher.

    The paper pairs CNNs, whose maps its code takes before their last ReLU; here maps are taken as the networks give
    them, and a ViT may stand on either side, its blocks as levels of one size.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("microsoft/resnet-50", layers=(2, 3, 4))
        >>> config = ReviewKDConfig.for_teacher(teacher, student_config, student_layers=(2, 3, 4))
        >>> model = ReviewKDForImageClassification(config).attach_teacher(teacher)
        >>> model(pixel_values, labels).loss.backward()
    """

    config_class = ReviewKDConfig

    def __init__(self, config: ReviewKDConfig):
        super().__init__(config)
        if len(config.teacher_hidden_sizes) != len(config.teacher_layers):
            raise ValueError(
                f"teacher_layers are {tuple(config.teacher_layers)}, but teacher_hidden_sizes are "
                f"{tuple(config.teacher_hidden_sizes)}: build the config with ReviewKDConfig.for_teacher(teacher, "
                f"...)."
            )
        self.layers = paired_layers(config)
        self.review = Review([layer.channels for layer in self.layers], config.teacher_hidden_sizes)
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` has maps of other widths than this model was built for."""
        if tuple(teacher.hidden_sizes) != tuple(self.config.teacher_hidden_sizes):
            raise ValueError(
                f"the teacher's hidden_sizes are {tuple(teacher.hidden_sizes)}, but this model was built for "
                f"{tuple(self.config.teacher_hidden_sizes)} (teacher_hidden_sizes)."
            )

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> ReviewKDOutput:
        """Classify, review, and compare every level with the teacher's.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: labels are missing.
        """
        config = self.config
        self.check_labels(labels, needed=True)
        target = self.teach(pixel_values, teacher_features=teacher_features)
        logits, maps = logits_and_maps(self.student, pixel_values, self.layers)
        levels = self.review(maps, target.feature_maps)

        with torch.autocast(pixel_values.device.type, enabled=False):
            review = sum(hierarchical_context_loss(ours.float(), theirs) for ours, theirs in levels)
            label_loss = F.cross_entropy(logits.float(), labels)
        ramp = min(1.0, self.progress / config.warmup_share) if config.warmup_share else 1.0
        loss = label_loss + ramp * config.review_weight * review
        return ReviewKDOutput(loss, label_loss, review, review.new_tensor(ramp), logits)

    def describe_objective(self) -> dict[str, str]:
        """Weights and layers."""
        config = self.config
        pairs = ", ".join(f"{s}-{t}" for s, t in zip(config.student_layers, config.teacher_layers))
        return {
            "objective": f"labels 1, review {config.review_weight:g} (layers {pairs} and pooled; "
            f"{config.warmup_share:g} of the steps warm-up)"
        }


AutoConfig.register("reviewkd", ReviewKDConfig)
AutoModelForImageClassification.register(ReviewKDConfig, ReviewKDForImageClassification)
