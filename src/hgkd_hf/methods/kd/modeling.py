"""Baselines: an image classifier that learns from labels and one classical objective of distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import ModelOutput

from ...objectives.contrastive import ContrastiveLoss
from ...objectives.decoupled import decoupled_distillation_loss
from ...objectives.hints import HintLoss
from ...objectives.logit_distillation import soft_distillation_loss
from ...students.classifier_layers import logits_and_maps, student_layers
from ..base.distiller import LastMapConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller, resize_map
from .settings import KDSettings

# Softness of logits as in the experiments of DKD; CRD's for the cosines.
TEMPERATURES = {"labels": 1.0, "kd": 4.0, "dkd": 4.0, "hint": 1.0, "contrastive": 0.07}


class KDConfig(KDSettings, LastMapConfig):
    """Configuration of `KDForImageClassification`: the fields of `LastMapConfig` and of `KDSettings`.

    The student is any `AutoModelForImageClassification`, a plain ViT or a CNN with maps at several scales.
    """

    model_type = "kd"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.temperature is None:
            self.temperature = TEMPERATURES[self.objective]
        known = student_layers(self.student_config)
        if self.student_layer not in known:
            raise ValueError(
                f"student_layer is {self.student_layer}, but the student ({self.student_config.model_type}) has 1 to "
                f"{len(known) - 1}, and -1."
            )


@dataclass
class KDOutput(ModelOutput):
    """Output of `KDForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy with the labels; None with weight 0.
        distillation_loss: scalar, the objective; None for `"labels"`.
        target_class, other_classes: scalars, DKD's terms before their weights; None for other objectives.
        student_to_teacher, teacher_to_student: scalars, the terms of `"contrastive"`; None for other objectives.
        logits: (B, num_labels), the student's.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    target_class: Tensor | None = None
    other_classes: Tensor | None = None
    student_to_teacher: Tensor | None = None
    teacher_to_student: Tensor | None = None
    logits: Tensor | None = None


class KDForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student, a regressor or projections where the objective has some, and a teacher.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("microsoft/resnet-50")
        >>> model = KDForImageClassification(KDConfig.for_teacher(teacher, student_config)).attach_teacher(teacher)
        >>> model(pixel_values, labels).loss.backward()
    """

    config_class = KDConfig

    def __init__(self, config: KDConfig):
        super().__init__(config)
        self.layers = []
        if config.objective in ("hint", "contrastive"):
            if config.teacher_hidden_size is None:
                raise ValueError(
                    f"objective {config.objective!r} needs teacher_hidden_size: build the config with "
                    f"KDConfig.for_teacher(teacher, ...)."
                )
            self.layers = [student_layers(config.student_config)[config.student_layer]]
            widths = self.layers[0].channels, config.teacher_hidden_size
            if config.objective == "hint":
                self.hint = HintLoss(*widths)
            else:
                self.contrastive = ContrastiveLoss(*widths, temperature=config.temperature, gather=config.gather)
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` has other classes, or a map of other width, than the objective compares."""
        if self.config.objective in ("kd", "dkd"):
            self.match_teacher_classes(teacher, f"objective is {self.config.objective!r}")
        elif self.layers:
            self.check_teacher_width(teacher)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> KDOutput:
        """Classify, and compare with labels and teacher.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or, but for `"dkd"`, (B, num_labels) probabilities; not needed with label_weight 0.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: a teacher is wanted, but not attached.
            ValueError: labels are missing, or mixed where single ones are needed.
        """
        config = self.config
        self.check_labels(labels, needed=config.label_weight > 0)
        target = self.teach(pixel_values, teacher_features=teacher_features) if config.needs_teacher else None
        logits, maps = logits_and_maps(self.student, pixel_values, self.layers)

        loss, terms = 0.0, {}
        with torch.autocast(pixel_values.device.type, enabled=False):
            if config.label_weight:
                terms["label_loss"] = F.cross_entropy(logits.float(), labels)
                loss = loss + config.label_weight * terms["label_loss"]
            if target is not None:
                distilled = self._distill(logits.float(), maps, target, labels)
                terms["distillation_loss"] = distilled.pop("loss")
                loss = loss + config.distillation_weight * terms["distillation_loss"]
                terms |= distilled
        return KDOutput(loss=loss, logits=logits, **terms)

    def _distill(
        self, logits: Tensor, maps: tuple[Tensor, ...], target: ModelOutput, labels: Tensor
    ) -> dict[str, Tensor]:
        """The objective as `loss`, and its terms."""
        config = self.config
        if config.standardize_logits:
            logits, target.logits = (F.layer_norm(x, x.shape[1:], eps=1e-7) for x in (logits, target.logits))
        if config.objective == "kd":
            return {"loss": soft_distillation_loss(logits, target.logits, config.temperature)}
        if config.objective == "dkd":
            return decoupled_distillation_loss(
                logits,
                target.logits,
                labels,
                alpha=config.target_class_weight,
                beta=config.other_classes_weight,
                temperature=config.temperature,
            )
        feature_map, target_map = maps[0].float(), target.feature_maps[-1]
        if config.objective == "contrastive":
            return self.contrastive(feature_map.mean((2, 3)), target_map.mean((2, 3)))
        grid = [min(sides) for sides in zip(feature_map.shape[-2:], target_map.shape[-2:])]
        return {"loss": self.hint(resize_map(feature_map, grid), resize_map(target_map, grid))}

    def describe_objective(self) -> dict[str, str]:
        """Weights and objective."""
        config = self.config
        if config.objective == "labels":
            return {"objective": "labels alone"}
        terms = f"{config.title} {config.distillation_weight:g}, T {config.temperature:g}"
        if config.objective == "dkd":
            terms += f", target class {config.target_class_weight:g}, others {config.other_classes_weight:g}"
        return {"objective": f"labels {config.label_weight:g}, {terms}"}


AutoConfig.register("kd", KDConfig)
AutoModelForImageClassification.register(KDConfig, KDForImageClassification)
