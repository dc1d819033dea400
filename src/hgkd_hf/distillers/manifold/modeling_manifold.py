"""Manifold distillation: an image classifier's patches relate to each other as a frozen ViT's do (2107.01378)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from ...objectives.logit_distillation import hard_distillation_loss, soft_distillation_loss
from ...objectives.manifold import manifold_loss
from ...students.classifier_layers import build_classifier, logits_and_maps, student_layers
from ...students.features import pooled_features
from ...teachers import PatchTeacher
from ...teachers.classifier_teacher import ClassifierTeacher, teacher_logits
from ..attached_teacher import AttachedTeacherMixin
from .configuration_manifold import ManifoldDistillationConfig


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


class ManifoldDistillationForImageClassification(AttachedTeacherMixin, PreTrainedModel):
    """A stock image classifier as student and, attached from outside, a ViT and a classifier as teachers.

    Example:
        >>> teacher = PatchTeacher.from_pretrained("facebook/deit-base-patch16-224", layers=(1, 12))
        >>> classifier = ClassifierTeacher.from_pretrained("facebook/deit-base-patch16-224")
        >>> config = ManifoldDistillationConfig.for_teacher(
        ...     teacher, student_config, classifier, student_layers=(1, 12)
        ... )
        >>> model = ManifoldDistillationForImageClassification(config).attach_teacher(teacher, classifier)
        >>> model(pixel_values, labels).loss.backward()
    """

    config_class = ManifoldDistillationConfig
    base_model_prefix = "student"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _classifier: tuple[ClassifierTeacher, ...] = ()

    def __init__(self, config: ManifoldDistillationConfig):
        super().__init__(config)
        if config.beta and not config.student_layers:
            raise ValueError(
                f"beta is {config.beta}, but student_layers and teacher_layers name no pair: build the config with "
                f"ManifoldDistillationConfig.for_teacher(teacher, ..., student_layers=...), or set beta to 0."
            )
        self.student = build_classifier(config.student_config)
        layers = student_layers(config.student_config)
        self.layers = tuple(layers[layer] for layer in config.student_layers) if config.beta else ()
        self.post_init()

    def attach_teacher(
        self, teacher: PatchTeacher | None = None, classifier: ClassifierTeacher | None = None
    ) -> ManifoldDistillationForImageClassification:
        """Let `teacher` give the features (with beta above 0) and `classifier` the logits (alpha); returns self.

        Raises:
            ValueError: one of them is missing, not wanted, or not what this model was configured for.
        """
        for name, given, field in (("teacher", teacher, "beta"), ("classifier", classifier, "alpha")):
            weight = getattr(self.config, field)
            if (given is None) == bool(weight):
                advice = f"pass {name}=..., or set {field} to 0" if weight else f"leave {name} out, or raise {field}"
                raise ValueError(f"{field} is {weight}, and {name} is {'missing' if weight else 'given'}: {advice}.")
        if classifier is not None:
            if classifier.num_labels != self.student.config.num_labels:
                raise ValueError(
                    f"the classifier has {classifier.num_labels} classes, but the student "
                    f"{self.student.config.num_labels} (num_labels of student_config)."
                )
            self._classifier = (classifier.requires_grad_(False).eval(),)
        return self if teacher is None else super().attach_teacher(teacher)

    def check_teacher(self, teacher: PatchTeacher) -> None:
        """Raise `ValueError` if `teacher` does not give the layers that the student's are paired with."""
        if tuple(teacher.layers) != tuple(self.config.teacher_layers) or teacher.teacher_input != "full":
            raise ValueError(
                f"the teacher's layers are {tuple(teacher.layers)} with teacher_input {teacher.teacher_input!r}, but "
                f"this model was built for {tuple(self.config.teacher_layers)} (teacher_layers) and 'full'."
            )

    @property
    def classifier(self) -> ClassifierTeacher:
        """The attached classifier.

        Raises:
            RuntimeError: none is attached.
        """
        if not self._classifier:
            wanted = self.config.classifier_name_or_path or "<classifier>"
            raise RuntimeError(
                f"{type(self).__name__} has no classifier: attach one with model.attach_teacher(teacher, "
                f"ClassifierTeacher.from_pretrained({wanted!r}))."
            )
        return self._classifier[0]

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """The student's feature vectors (B, C) of images (B, 3, H, W), for evaluation."""
        return pooled_features(self.student.base_model, pixel_values)

    def to_native(self) -> PreTrainedModel:
        """The student as a stock transformers image classifier; a copy, in eval mode."""
        return copy.deepcopy(self.student).eval()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs) -> ManifoldDistillationOutput:
        """Classify, and compare with labels and teachers.

        The random term draws from torch's global CPU generator, whose state `Trainer` saves and restores.

        Args:
            pixel_values: (B, 3, H, W), normalised with `config.image_mean` and `config.image_std`.
            labels: (B,) long, or (B, num_labels) probabilities, e.g. of mixup or cutmix; not needed with alpha 1.

        Raises:
            RuntimeError: a teacher is wanted, but not attached.
            ValueError: labels are wanted, but there are none.
        """
        config = self.config
        if labels is None and config.alpha < 1:
            raise ValueError(f"alpha is {config.alpha}, so that labels are needed, but there are none.")
        targets = self.teach(pixel_values) if config.beta else ()
        target_logits = teacher_logits(self.classifier, pixel_values, config) if config.alpha else None
        logits, maps = logits_and_maps(self.student, pixel_values, self.layers)

        loss, terms = 0.0, {}
        with torch.autocast(pixel_values.device.type, enabled=False):
            if config.alpha < 1:
                terms["label_loss"] = F.cross_entropy(logits.float(), labels)
                loss = loss + (1 - config.alpha) * terms["label_loss"]
            if config.alpha:
                if config.distillation == "soft":
                    distilled = soft_distillation_loss(logits.float(), target_logits, config.temperature)
                else:
                    distilled = hard_distillation_loss(logits.float(), target_logits)
                terms["distillation_loss"] = distilled
                loss = loss + config.alpha * distilled
            if config.beta:
                pairs = [common_tokens(student, target) for student, target in zip(maps, targets)]
                manifold = manifold_loss(
                    *zip(*pairs),
                    torch.default_generator,
                    intra_weight=config.intra_weight,
                    inter_weight=config.inter_weight,
                    random_weight=config.random_weight,
                    num_samples=config.num_samples,
                )
                terms["manifold_loss"] = manifold.pop("loss")
                loss = loss + config.beta * terms["manifold_loss"]
                terms |= manifold
        return ManifoldDistillationOutput(loss=loss, logits=logits, **terms)


def common_tokens(*maps: Tensor) -> tuple[Tensor, ...]:
    """Maps (B, C, h, w), of any channels and grids, as float32 tokens (B, N, C) on the smallest of the grids.

    Larger maps are resized bilinearly, with antialiasing, so that every position counts.
    """
    grid = [min(sides) for sides in zip(*(m.shape[-2:] for m in maps))]
    resized = (
        m.float() if list(m.shape[-2:]) == grid else F.interpolate(m.float(), grid, mode="bilinear", antialias=True)
        for m in maps
    )
    return tuple(m.flatten(2).mT for m in resized)
