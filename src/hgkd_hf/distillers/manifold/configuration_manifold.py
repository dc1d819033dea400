"""Configuration of manifold distillation."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...students.classifier_layers import student_layers
from ...teachers import PatchTeacher
from ...teachers.classifier_teacher import ClassifierTeacher


class ManifoldDistillationConfig(PreTrainedConfig):
    """Configuration of `ManifoldDistillationForImageClassification`.

    loss = (1 - alpha) * label loss + alpha * distillation loss of logits + beta * manifold loss, a term of weight 0
    not being computed. Weights are those of the main run of arXiv:2107.01378, CaiT-S24 into DeiT-Tiny, which paired
    the blocks 1-4 and 9-12 with 1-4 and 21-24.

    Args:
        student_config: config (or its dict) of any `AutoModelForImageClassification`: a plain ViT, or a CNN with maps
            at several scales. Its `num_labels` are the task's. Default: ResNet-50.
        student_layers: i = output of the student's i-th block (ViT) or its i-th scale, finest first (CNN); -1 = its
            `last_hidden_state`. Paired with `teacher_layers` one by one.
        teacher_name_or_path, teacher_revision, teacher_layers, teacher_image_size: of the `PatchTeacher`.
        classifier_name_or_path, classifier_revision: of the `ClassifierTeacher` whose logits are distilled.
        image_mean, image_std: normalisation of the student's `pixel_values`.
        alpha: share of the teacher's logits, 0 (none is needed) to 1 (labels are not).
        beta: weight of the manifold loss; 0 leaves logit distillation, or with alpha 0 labels alone.
        distillation: `"soft"`: probabilities at `temperature` (KD); `"hard"`: the classifier's decisions.
        temperature: of the soft distillation.
        intra_weight, inter_weight, random_weight: weights inside the manifold loss.
        num_samples: tokens that the random term draws.

    Raises:
        ValueError: a value is out of range, or the layers do not pair up; the message names them.
    """

    model_type = "manifold_distillation"
    sub_configs: ClassVar[dict[str, type]] = {"student_config": AutoConfig}

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    student_layers: list[int] | tuple[int, ...] = ()
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_layers: list[int] | tuple[int, ...] = ()
    teacher_image_size: list[int] | tuple[int, ...] | None = None
    classifier_name_or_path: str | None = None
    classifier_revision: str | None = None
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    alpha: float = 1.0
    beta: float = 1.0
    distillation: str = "soft"
    temperature: float = 1.0
    intra_weight: float = 4.0
    inter_weight: float = 0.1
    random_weight: float = 0.2
    num_samples: int = 192

    def __post_init__(self, **kwargs):
        if not isinstance(self.student_config, PreTrainedConfig):
            self.student_config = AutoConfig.for_model(**(self.student_config or {"model_type": "resnet"}))
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.student_config.id2label, self.student_config.label2id
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}, but it must lie in [0, 1].")
        for name in ("beta", "intra_weight", "inter_weight", "random_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must not be negative.")
        if self.distillation not in ("soft", "hard"):
            raise ValueError(f"distillation is {self.distillation!r}: choose one of soft, hard.")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but it must be above 0.")
        if self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples}, but it must be at least 1.")
        if len(self.student_layers) != len(self.teacher_layers):
            raise ValueError(
                f"student_layers {tuple(self.student_layers)} and teacher_layers {tuple(self.teacher_layers)} are "
                f"paired one by one, but are {len(self.student_layers)} and {len(self.teacher_layers)}."
            )
        known = student_layers(self.student_config)
        wrong = [layer for layer in self.student_layers if layer not in known]
        if wrong:
            raise ValueError(
                f"student_layers names layer {wrong[0]}, but the student ({self.student_config.model_type}) has "
                f"1 to {len(known) - 1}, and -1."
            )

    @classmethod
    def for_teacher(
        cls,
        teacher: PatchTeacher | None,
        student_config: PreTrainedConfig,
        classifier: ClassifierTeacher | None = None,
        **kwargs,
    ) -> ManifoldDistillationConfig:
        """The configuration for distilling `teacher` (and `classifier`'s logits) into a student.

        `kwargs` are the other fields. Without a classifier alpha is 0, without a teacher beta is 0, unless given.
        """
        fields = {"student_config": student_config.to_dict(), "alpha": float(classifier is not None)}
        fields["beta"] = float(teacher is not None)
        if teacher is not None:
            fields |= {"teacher_name_or_path": teacher.name_or_path, "teacher_revision": teacher.revision}
            fields |= {"teacher_layers": list(teacher.layers), "teacher_image_size": list(teacher.image_size)}
        if classifier is not None:
            fields["classifier_name_or_path"] = classifier.name_or_path
            fields["classifier_revision"] = classifier.revision
        return cls(**fields | kwargs)
