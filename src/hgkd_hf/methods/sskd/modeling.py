"""SSKD (arXiv:2006.07114): an image classifier learns from a frozen one, with self-supervision as a second task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import ModelOutput

from ...objectives.distributed import gather_batch
from ...objectives.logit_distillation import soft_distillation_loss
from ...objectives.self_supervision import rotations, similarity_loss, view_similarities
from ...students.classifier_layers import logits_and_maps, student_layers
from ..base.distiller import DistillerConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller
from .settings import SSKDSettings


class SSKDConfig(SSKDSettings, DistillerConfig):
    """Configuration of `SSKDForImageClassification`: the fields of `DistillerConfig` and of `SSKDSettings`."""

    model_type = "sskd"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        student_layers(self.student_config)  # refuses a student without maps


@dataclass
class SSKDOutput(ModelOutput):
    """Output of `SSKDForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy of the upright images with the labels.
        distillation_loss, turned_loss: scalars, KD of the upright and of the turned images.
        similarity_loss: scalar, KL of the similarities of turned and upright images.
        logits: (B, num_labels), the student's of the upright images.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    distillation_loss: Tensor | None = None
    turned_loss: Tensor | None = None
    similarity_loss: Tensor | None = None
    logits: Tensor | None = None


class SSKDForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student, a head for its similarities and, attached from outside, a classifier.

    The paper first trains a head for the frozen teacher's similarities; here they are the cosines of the teacher's
    pooled last map, without a head, so that any classifier of the Hub teaches as it is. All four views go through both
    networks: a step costs four times that of KD.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("microsoft/resnet-50")
        >>> model = SSKDForImageClassification(SSKDConfig.for_teacher(teacher, student_config))
        >>> model.attach_teacher(teacher)(pixel_values, labels).loss.backward()
    """

    config_class = SSKDConfig

    def __init__(self, config: SSKDConfig):
        super().__init__(config)
        self.layer = student_layers(config.student_config)[-1]
        width = self.layer.channels
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` does not know the student's classes."""
        self.match_teacher_classes(teacher, "SSKD compares logits")

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> SSKDOutput:
        """Turn the images, classify all views, and compare logits and similarities with the teacher's.

        Args:
            pixel_values: (B, 3, S, S), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: labels are missing, or the images are not square.
        """
        config = self.config
        self.check_labels(labels, needed=True)
        views, images = rotations(pixel_values), len(pixel_values)
        target = self.teach(views)
        logits, (feature_map,) = logits_and_maps(self.student, views, [self.layer])
        ours, theirs = self.head(feature_map.mean((2, 3))), target.feature_maps[-1].mean((2, 3))

        with torch.autocast(pixel_values.device.type, enabled=False):
            logits = logits.float()
            similarities = (view_similarities(self._all_views(features.float())) for features in (ours, theirs))
            terms = {
                "label_loss": F.cross_entropy(logits[:images], labels),
                "distillation_loss": soft_distillation_loss(
                    logits[:images], target.logits[:images], config.temperature
                ),
                "turned_loss": soft_distillation_loss(logits[images:], target.logits[images:], config.temperature),
                "similarity_loss": similarity_loss(*similarities, config.similarity_temperature, config.wrong_share),
            }
        weights = config.label_weight, config.distillation_weight, config.turned_weight, config.similarity_weight
        loss = sum(weight * term for weight, term in zip(weights, terms.values()))
        return SSKDOutput(loss=loss, logits=logits[:images], **terms)

    def _all_views(self, features: Tensor) -> Tensor:
        """Features (4B, D), with those of the other processes' images beside them where they are gathered."""
        if not self.config.gather:
            return features
        return gather_batch(features.unflatten(0, (4, -1)).transpose(0, 1))[0].transpose(0, 1).flatten(0, 1)

    def describe_objective(self) -> dict[str, str]:
        """Weights and temperatures."""
        config = self.config
        return {
            "objective": f"labels {config.label_weight:g}, KD {config.distillation_weight:g} upright and "
            f"{config.turned_weight:g} turned (T {config.temperature:g}), similarities {config.similarity_weight:g} "
            f"(T {config.similarity_temperature:g})"
        }


AutoConfig.register("sskd", SSKDConfig)
AutoModelForImageClassification.register(SSKDConfig, SSKDForImageClassification)
