"""Manifold distillation: an image classifier's patches relate to each other as a frozen ViT's do (2107.01378)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.utils import ModelOutput

from ...objectives.distributed import gather_batch, shared_generator
from ...objectives.logit_distillation import hard_distillation_loss, soft_distillation_loss
from ...objectives.manifold import manifold_loss
from ...students.classifier_layers import logits_and_maps
from ...teachers import ClassifierTeacher
from ..base.distiller import DistillerConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller, paired_layers, resize_map
from .settings import ManifoldDistillationSettings


class ManifoldDistillationConfig(ManifoldDistillationSettings, DistillerConfig):
    """Configuration of `ManifoldDistillationForImageClassification`: `DistillerConfig` and its settings.

    The student is any `AutoModelForImageClassification`, a plain ViT or a CNN with maps at several scales.
    """

    model_type = "manifold_distillation"

    teacher_layers: list[int] | tuple[int, ...] = (-1,)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if not self.beta:
            self.student_layers, self.teacher_layers = (), ()
        paired_layers(self)

    @classmethod
    def for_teacher(cls, teacher: Teacher, student_config: PreTrainedConfig, **fields: Any) -> Self:
        """See `DistillerConfig`; unless given, alpha is 1 with a teacher that classifies, else 0."""
        alpha = float(isinstance(teacher, ClassifierTeacher))
        return super().for_teacher(teacher, student_config, **{"alpha": alpha} | fields)


@dataclass
class ManifoldDistillationOutput(ModelOutput):
    """Output of `ManifoldDistillationForImageClassification`; scalars beside `loss` are its named terms.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss, distillation_loss, manifold_loss: scalars before alpha and beta; None without that term.
        intra_image, inter_image, random_sample: scalars, the manifold loss's terms before their weights.
        logits: (B, num_labels), the student's.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    manifold_loss: Tensor | None = None
    intra_image: Tensor | None = None
    inter_image: Tensor | None = None
    random_sample: Tensor | None = None
    logits: Tensor | None = None


class ManifoldDistillationForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student and, attached from outside, a teacher.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("facebook/deit-base-patch16-224", layers=(1, 12))
        >>> config = ManifoldDistillationConfig.for_teacher(teacher, student_config, student_layers=(1, 12))
        >>> model = ManifoldDistillationForImageClassification(config).attach_teacher(teacher)
        >>> model(pixel_values, labels).loss.backward()
    """

    config_class = ManifoldDistillationConfig

    def __init__(self, config: ManifoldDistillationConfig):
        super().__init__(config)
        if config.beta and not config.student_layers:
            raise ValueError(
                f"beta is {config.beta}, but student_layers and teacher_layers name no pair: build the config with "
                f"ManifoldDistillationConfig.for_teacher(teacher, ..., student_layers=...), or set beta to 0."
            )
        self.layers = paired_layers(config)
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` lacks the layers that the student's are paired with, or the classes."""
        config = self.config
        if config.beta and (tuple(teacher.layers) != tuple(config.teacher_layers) or teacher.teacher_input != "full"):
            raise ValueError(
                f"the teacher's layers are {tuple(teacher.layers)} with teacher_input {teacher.teacher_input!r}, but "
                f"this model was built for {tuple(config.teacher_layers)} (teacher_layers) and 'full'."
            )
        if config.alpha:
            self.match_teacher_classes(teacher, f"alpha is {config.alpha}")

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> ManifoldDistillationOutput:
        """Classify, and compare with labels and teachers.

        The random term draws from torch's global CPU generator.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities, e.g. of mixup or cutmix; not needed with alpha 1.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: a teacher is wanted, but not attached.
            ValueError: labels are wanted, but there are none.
        """
        config = self.config
        if labels is None and config.alpha < 1:
            raise ValueError(f"alpha is {config.alpha}, so that labels are needed, but there are none.")
        target = self.teach(pixel_values, teacher_features=teacher_features) if config.needs_teacher else None
        logits, maps = logits_and_maps(self.student, pixel_values, self.layers)

        loss, terms = 0.0, {}
        with torch.autocast(pixel_values.device.type, enabled=False):
            if config.alpha < 1:
                terms["label_loss"] = F.cross_entropy(logits.float(), labels)
                loss = loss + (1 - config.alpha) * terms["label_loss"]
            if config.alpha:
                if config.distillation == "soft":
                    distilled = soft_distillation_loss(logits.float(), target.logits, config.temperature)
                else:
                    distilled = hard_distillation_loss(logits.float(), target.logits)
                terms["distillation_loss"] = distilled
                loss = loss + config.alpha * distilled
            if config.beta:
                pairs = [common_tokens(*pair) for pair in zip(maps, target.feature_maps)]
                generator = torch.default_generator
                if config.gather:
                    generator = shared_generator()
                    pairs = [[gather_batch(tokens)[0] for tokens in pair] for pair in pairs]
                manifold = manifold_loss(
                    *zip(*pairs),
                    generator,
                    intra_weight=config.intra_weight,
                    inter_weight=config.inter_weight,
                    random_weight=config.random_weight,
                    num_samples=config.num_samples,
                )
                terms["manifold_loss"] = manifold.pop("loss")
                loss = loss + config.beta * terms["manifold_loss"]
                terms |= manifold
        return ManifoldDistillationOutput(loss=loss, logits=logits, **terms)

    def describe_objective(self) -> dict[str, str]:
        """Weights and layers."""
        config = self.config
        pairs = ", ".join(f"{s}-{t}" for s, t in zip(config.student_layers, config.teacher_layers))
        weights = f"{config.intra_weight} within, {config.inter_weight} across, {config.random_weight} at random"
        return {
            "objective": f"labels {1 - config.alpha:g}, logits {config.alpha:g} ({config.distillation}, "
            f"T {config.temperature:g}), manifold {config.beta:g} ({weights}; layers {pairs})"
        }


def common_tokens(*maps: Tensor) -> tuple[Tensor, ...]:
    """Maps (B, C, h, w), of any channels and grids, as float32 tokens (B, N, C) on the smallest of the grids."""
    grid = [min(sides) for sides in zip(*(m.shape[-2:] for m in maps))]
    return tuple(resize_map(m, grid).flatten(2).mT for m in maps)


AutoConfig.register("manifold_distillation", ManifoldDistillationConfig)
AutoModelForImageClassification.register(ManifoldDistillationConfig, ManifoldDistillationForImageClassification)
