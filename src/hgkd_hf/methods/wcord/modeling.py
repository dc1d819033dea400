"""WCoRD (arXiv:2012.08674): an image classifier's pooled features come close to a frozen teacher's in Wasserstein."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification
from transformers.utils import ModelOutput

from ...objectives.distributed import gather_batch
from ...objectives.wasserstein import BilinearCritic, dual_loss, transport_cost
from ...students.classifier_layers import logits_and_maps, student_layers
from ..base.distiller import LastMapConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller
from .settings import WCoRDSettings


class WCoRDConfig(WCoRDSettings, LastMapConfig):
    """Configuration of `WCoRDForImageClassification`: the fields of `LastMapConfig` and of `WCoRDSettings`."""

    model_type = "wcord"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        student_layers(self.student_config)  # refuses a student without maps


@dataclass
class WCoRDOutput(ModelOutput):
    """Output of `WCoRDForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy with the labels.
        dual: scalar, minus what the critic tells pairs of one image from pairs of two by.
        primal: scalar, the cost of moving the student's features to the teacher's.
        logits: (B, num_labels), the student's.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    dual: Tensor | None = None
    primal: Tensor | None = None
    logits: Tensor | None = None


class WCoRDForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student, a critic, a projector to the teacher's width and an attached teacher.

    CNN and ViT may stand on either side: features are the means of the last maps. The paper draws negatives from a
    memory bank and learns a deeper critic; negatives of the batch, the bilinear critic and the linear projector of the
    primal form are ours.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("microsoft/resnet-50")
        >>> model = WCoRDForImageClassification(WCoRDConfig.for_teacher(teacher, student_config))
        >>> model.attach_teacher(teacher)(pixel_values, labels).loss.backward()
    """

    config_class = WCoRDConfig

    def __init__(self, config: WCoRDConfig):
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise ValueError(
                "no teacher_hidden_size is known: build the config with WCoRDConfig.for_teacher(teacher, ...)."
            )
        self.layer = student_layers(config.student_config)[-1]
        widths = self.layer.channels, config.teacher_hidden_size
        self.critic = BilinearCritic(*widths, config.critic_dim)
        self.projector = nn.Linear(*widths)
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if the last of `teacher`'s maps has another width."""
        self.check_teacher_width(teacher)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> WCoRDOutput:
        """Classify, and compare the batch's features with the teacher's.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`; two images or more.
            labels: (B,) long, or (B, num_labels) probabilities.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: labels are missing, or there is one image alone.
        """
        config = self.config
        self.check_labels(labels, needed=True)
        target = self.teach(pixel_values, teacher_features=teacher_features).feature_maps[-1]
        logits, (feature_map,) = logits_and_maps(self.student, pixel_values, [self.layer])

        with torch.autocast(pixel_values.device.type, enabled=False):
            ours, theirs = feature_map.float().mean((2, 3)), target.mean((2, 3))
            if config.gather:
                ours, theirs = (gather_batch(features)[0] for features in (ours, theirs))
            dual = dual_loss(self.critic(ours, theirs))
            primal = transport_cost(self.projector(ours), theirs, config.epsilon, config.iterations)
            label_loss = F.cross_entropy(logits.float(), labels)
        loss = label_loss + config.global_weight * dual + config.local_weight * primal
        return WCoRDOutput(loss, label_loss, dual, primal, logits)

    def describe_objective(self) -> dict[str, str]:
        """Weights and transport."""
        config = self.config
        return {
            "objective": f"labels 1, dual {config.global_weight:g}, primal {config.local_weight:g} (epsilon "
            f"{config.epsilon:g}, {config.iterations} iterations)"
        }


AutoConfig.register("wcord", WCoRDConfig)
AutoModelForImageClassification.register(WCoRDConfig, WCoRDForImageClassification)
