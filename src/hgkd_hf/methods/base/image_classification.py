"""What distillers of stock image classifiers share."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...students.classifier_layers import build_classifier, student_layers
from ...students.features import FeatureScale, pooled_features
from ...teachers import ClassifierTeacher
from .distiller import Distiller, DistillerConfig, Teacher


class ImageClassificationDistiller(Distiller):
    """A stock image classifier as student, with an attached teacher."""

    classifies = True

    def __init__(self, config: DistillerConfig):
        super().__init__(config)
        self.student = build_classifier(config.student_config)

    def match_teacher_classes(self, teacher: Teacher, reason: str) -> None:
        """Let `teacher` answer in the student's classes, by their names, which `reason` asks for.

        Raises:
            ValueError: it has no classifier, or not all of these classes.
        """
        from ...data import match_classes  # not above: `import hgkd_hf` need not load `datasets`
        from ...data.errors import listed

        if not isinstance(teacher, ClassifierTeacher):
            raise ValueError(
                f"{reason}, but the teacher {teacher.name_or_path!r} has no classifier: "
                f"choose a checkpoint that classifies (--teacher), as a ClassifierTeacher."
            )
        names = [self.student.config.id2label[number] for number in range(self.student.config.num_labels)]
        try:
            numbers = match_classes(names, teacher.class_names, "the student", "the teacher")
        except ValueError as error:
            raise ValueError(f"{reason}, but {error}") from None
        missing = [name for name, number in zip(names, numbers) if number is None]
        if missing:
            raise ValueError(
                f"{reason}, but the teacher does not know {listed(missing)} of the student's classes: it has "
                f"{listed(teacher.class_names)}."
            )
        teacher.answer_in(numbers)

    def check_teacher_width(self, teacher: Teacher) -> None:
        """Raise `ValueError` if the last of `teacher`'s maps has another width than this model was built for."""
        if teacher.hidden_sizes[-1] != self.config.teacher_hidden_size:
            raise ValueError(
                f"the last of the teacher's hidden_sizes is {teacher.hidden_sizes[-1]}, but this model was built for "
                f"{self.config.teacher_hidden_size} (teacher_hidden_size)."
            )

    def check_labels(self, labels: Tensor | None, needed: bool) -> None:
        """Raise `ValueError` for labels that are missing, or mixed where the settings ask for one class an image."""
        single = self.config.single_labels
        if (labels is None and (needed or single)) or (single and labels.dim() != 1):
            given = None if labels is None else tuple(labels.shape)
            wanted = f"(B,) with {single}" if single else "(B,) or (B, num_labels)"
            raise ValueError(f"labels {given} must be {wanted}.")

    @property
    def encoder(self) -> PreTrainedModel:
        """The classifier without its head."""
        return self.student.base_model

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), for evaluation."""
        return pooled_features(self.encoder, pixel_values)

    def image_logits(self, pixel_values: Tensor) -> Tensor:
        """The student's logits (B, num_labels) of images (B, 3, H, W), for evaluation."""
        return self.student(pixel_values).logits

    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers image classifier; a copy, in eval mode."""
        return copy.deepcopy(self.student).eval()


def paired_layers(config: DistillerConfig) -> tuple[FeatureScale, ...]:
    """The student's layers that `config.student_layers` names, which `config.teacher_layers` are paired with.

    Raises:
        ValueError: there is no such layer, or they are not as many as the teacher's.
    """
    if len(config.student_layers) != len(config.teacher_layers):
        raise ValueError(
            f"student_layers {tuple(config.student_layers)} and teacher_layers {tuple(config.teacher_layers)} are "
            f"paired one by one, but are {len(config.student_layers)} and {len(config.teacher_layers)}."
        )
    known = student_layers(config.student_config)
    wrong = [layer for layer in config.student_layers if layer not in known]
    if wrong:
        raise ValueError(
            f"student_layers names layer {wrong[0]}, but the student ({config.student_config.model_type}) has "
            f"1 to {len(known) - 1}, and -1."
        )
    return tuple(known[layer] for layer in config.student_layers)


def resize_map(feature_map: Tensor, grid: Sequence[int] | torch.Size) -> Tensor:
    """A map (B, C, h, w) as float32 (B, C, *grid); bilinear, with antialiasing, so that every position counts."""
    feature_map = feature_map.float()
    if tuple(feature_map.shape[-2:]) == tuple(grid):
        return feature_map
    return F.interpolate(feature_map, tuple(grid), mode="bilinear", antialias=True)
