"""Configuration of the baselines."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ...students.classifier_layers import student_layers
from ...teachers import ClassifierTeacher, PatchTeacher
from ..base.configuration_distiller import DistillerConfig

# Softness of logits as in the experiments of DKD; CRD's for the cosines.
TEMPERATURES = {"labels": 1.0, "kd": 4.0, "dkd": 4.0, "hint": 1.0, "contrastive": 0.07}


class KDConfig(DistillerConfig):
    """Configuration of `KDForImageClassification`: loss = label_weight * label loss + distillation_weight * objective.

    The other fields are those of `DistillerConfig`; the student is any `AutoModelForImageClassification`, a plain ViT
    or a CNN with maps at several scales.

    Args:
        objective: `"labels"`: none, the student learns from labels alone; `"kd"`: the teacher's softened logits
            (arXiv:1503.02531); `"dkd"`: the same, decoupled (arXiv:2203.08679); `"hint"`: the teacher's map, regressed
            (FitNets, arXiv:1412.6550); `"contrastive"`: InfoNCE between pooled features, CRD's relative without memory
            banks (arXiv:1910.10699).
        label_weight, distillation_weight: of the two terms.
        temperature: of logits or cosines; None = the objective's, 4 or 0.07.
        target_class_weight, other_classes_weight: DKD's alpha and beta.
        student_layer: whose map `"hint"` and `"contrastive"` take: i = output of the i-th block (ViT) or i-th scale
            (CNN), -1 = `last_hidden_state`.
        teacher_hidden_size: channels of the last of the teacher's maps, which it is compared with.
        gather: contrastive candidates come from all processes.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    model_type = "kd"

    objective: str = "kd"
    label_weight: float = 1.0
    distillation_weight: float = 1.0
    temperature: float | None = None
    target_class_weight: float = 1.0
    other_classes_weight: float = 8.0
    student_layer: int = -1
    teacher_hidden_size: int | None = None
    gather: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_choices(objective=tuple(TEMPERATURES))
        if self.temperature is None:
            self.temperature = TEMPERATURES[self.objective]
        self.check_positive("temperature")
        self.check_not_negative("label_weight", "distillation_weight", "target_class_weight", "other_classes_weight")
        if not self.label_weight and (self.objective == "labels" or not self.distillation_weight):
            raise ValueError(
                f"label_weight is 0, and objective {self.objective!r} with distillation_weight "
                f"{self.distillation_weight} leaves nothing to learn: raise one of the weights."
            )
        known = student_layers(self.student_config)
        if self.student_layer not in known:
            raise ValueError(
                f"student_layer is {self.student_layer}, but the student ({self.student_config.model_type}) has 1 to "
                f"{len(known) - 1}, and -1."
            )

    @classmethod
    def for_teacher(
        cls, teacher: PatchTeacher | ClassifierTeacher, student_config: PreTrainedConfig, **kwargs
    ) -> KDConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields."""
        fields = {"student_config": student_config.to_dict(), "teacher_hidden_size": teacher.hidden_sizes[-1]}
        return cls(**cls.fields_of_teacher(teacher) | fields | kwargs)
