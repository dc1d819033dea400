"""MSDCRD: local regions of the student's last map, at several scales, find their own in the teacher's.

An independent reading of the abstract of arXiv:2502.05835; what it leaves open is a field of `MSDCRDConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig
from transformers.utils import ModelOutput

from ...objectives.multi_scale_contrastive import multi_scale_contrastive_loss
from ...students.classifier_layers import logits_and_maps, student_layers
from ...teachers import ClassifierTeacher
from ..base.distiller import LastMapConfig, Teacher
from ..base.image_classification import ImageClassificationDistiller, resize_map
from .settings import MSDCRDSettings


class MSDCRDConfig(MSDCRDSettings, LastMapConfig):
    """Configuration of `MSDCRDForImageClassification`: the fields of `LastMapConfig` and of `MSDCRDSettings`.

    The student is any `AutoModelForImageClassification`, a plain ViT or a CNN with maps at several scales, the teacher
    a `PatchTeacher` or a `ClassifierTeacher`.

    Args:
        teacher_hidden_size: channels of the last of its maps. Where the student's differ, a 1x1 convolution projects
            them; it is not part of the exported student.
    """

    model_type = "msdcrd"

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        student_layers(self.student_config)  # refuses a student without maps

    @classmethod
    def for_teacher(cls, teacher: Teacher, student_config: PreTrainedConfig, **fields: Any) -> Self:
        """See `DistillerConfig`; unless given, selection is "consistent" with a teacher that classifies regions."""
        selection = "consistent" if classifies_regions(teacher) else "all"
        return super().for_teacher(teacher, student_config, **{"selection": selection} | fields)


def classifies_regions(teacher: Teacher) -> bool:
    """Whether `teacher.classify` can be asked of parts of its map."""
    return isinstance(teacher, ClassifierTeacher) and teacher.classifies_regions


@dataclass
class MSDCRDOutput(ModelOutput):
    """Output of `MSDCRDForImageClassification`; scalars beside `loss` are its named terms, before their weights.

    Args:
        loss: scalar, the weighted sum of the terms.
        label_loss: scalar, cross-entropy with the labels.
        sample_wise, feature_wise: scalars, the contrastive terms.
        ramp: scalar in (0, 1], the factor of both contrastive weights while they warm up.
        logits: (B, num_labels), the student's.
    """

    loss: Tensor | None = None
    label_loss: Tensor | None = None
    sample_wise: Tensor | None = None
    feature_wise: Tensor | None = None
    ramp: Tensor | None = None
    logits: Tensor | None = None


class MSDCRDForImageClassification(ImageClassificationDistiller):
    """A stock image classifier as student, a projector where channels differ and, attached from outside, a teacher.

    An independent reading of the abstract of arXiv:2502.05835. CNN and ViT may stand on either side: the student's
    map is resized to the teacher's grid.

    Example:
        >>> teacher = ClassifierTeacher.from_pretrained("microsoft/resnet-50")
        >>> config = MSDCRDConfig.for_teacher(teacher, student_config, warmup_batches=1000)
        >>> model = MSDCRDForImageClassification(config).attach_teacher(teacher)
        >>> model(pixel_values, labels).loss.backward()
    """

    config_class = MSDCRDConfig

    def __init__(self, config: MSDCRDConfig):
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise ValueError(
                "no teacher_hidden_size is known: build the config with MSDCRDConfig.for_teacher(teacher, ...)."
            )
        self.layer = student_layers(config.student_config)[-1]
        same = self.layer.channels == config.teacher_hidden_size
        self.projector = nn.Identity() if same else nn.Conv2d(self.layer.channels, config.teacher_hidden_size, 1)
        # Saved with the weights, so that a run that resumes finds its weights where they were.
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))
        self.post_init()

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` has another width, or cannot classify the regions that are selected."""
        config = self.config
        self.check_teacher_width(teacher)
        if config.selection == "all":
            return
        if not classifies_regions(teacher):
            raise ValueError(
                f"selection is {config.selection!r}, but this teacher cannot classify regions: attach a "
                f"ClassifierTeacher with one linear classifier, or set selection to 'all'."
            )
        self.match_teacher_classes(teacher, f"selection is {config.selection!r}")

    @property
    def ramp(self) -> Tensor:
        """The factor of the contrastive weights at the next training batch, () float32 in (0, 1]."""
        return ((self.batches_seen + 1) / max(1, self.config.warmup_batches)).clamp(max=1)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        teacher_features: Tensor | None = None,
        **kwargs,
    ) -> MSDCRDOutput:
        """Classify, and compare regions with the teacher's; in training mode, count the batch for the warm-up.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities where neither selection nor negatives ask for labels.
            teacher_features: (B, C, th, tw), what a cached teacher saw in them; see `Distiller.teach`.

        Raises:
            RuntimeError: no teacher is attached.
            ValueError: labels are missing, or mixed where single ones are needed.
        """
        config = self.config
        self.check_labels(labels, needed=True)
        target = self.teach(pixel_values, teacher_features=teacher_features).feature_maps[-1]
        logits, (feature_map,) = logits_and_maps(self.student, pixel_values, [self.layer])
        projected = self.projector(feature_map)

        with torch.autocast(pixel_values.device.type, enabled=False):
            contrastive = multi_scale_contrastive_loss(
                resize_map(projected, target.shape[-2:]),
                target,
                layout=config.layout,
                selection=config.selection,
                classifier=None if config.selection == "all" else self.teacher.classify,
                labels=labels if config.single_labels else None,
                exclude_same_label=config.exclude_same_label,
                temperature=config.temperature,
                sample_weight=config.sample_weight,
                feature_weight=config.feature_weight,
                gather=config.gather,
            )
            label_loss = F.cross_entropy(logits.float(), labels)
        ramp = self.ramp
        loss = label_loss + ramp * contrastive.pop("loss")
        if self.training:
            self.batches_seen += 1
        return MSDCRDOutput(loss=loss, label_loss=label_loss, ramp=ramp, logits=logits, **contrastive)

    def describe_objective(self) -> dict[str, str]:
        """Weights and regions."""
        config = self.config
        return {
            "objective": f"labels 1, sample-wise {config.sample_weight:g}, feature-wise {config.feature_weight:g} "
            f"(regions {config.layout}, {config.selection}; T {config.temperature:g}; {config.warmup_batches} batches "
            f"of warm-up)"
        }


AutoConfig.register("msdcrd", MSDCRDConfig)
AutoModelForImageClassification.register(MSDCRDConfig, MSDCRDForImageClassification)
