"""The baselines for the training script."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..base.labelled import LabelledMethod
from . import KDConfig, KDForImageClassification

# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "objective",
    "label_weight",
    "distillation_weight",
    "temperature",
    "target_class_weight",
    "other_classes_weight",
    "student_layer",
    "gather",
)
TITLES = {
    "labels": "Labels alone",
    "kd": "Logit distillation (KD)",
    "dkd": "Decoupled distillation (DKD)",
    "hint": "FitNets hints",
    "contrastive": "InfoNCE in one batch",
}


@dataclass
class KDMethod(LabelledMethod):
    """Baselines: labels alone, logit KD, DKD, FitNets hints, InfoNCE in one batch (CRD without memory banks)."""

    objective: str = field(default="kd", metadata={"help": "labels | kd | dkd | hint | contrastive."})
    label_weight: float = field(default=1.0, metadata={"help": "Of the label loss."})
    distillation_weight: float = field(default=1.0, metadata={"help": "Of the objective."})
    temperature: float | None = field(default=None, metadata={"help": "Default: logits 4, contrastive 0.07."})
    target_class_weight: float = field(default=1.0, metadata={"help": "DKD's alpha."})
    other_classes_weight: float = field(default=8.0, metadata={"help": "DKD's beta."})
    student_layer: int = field(default=-1, metadata={"help": "Compared with the last of --teacher_layers."})
    gather: bool = field(default=False, metadata={"help": "Contrastive candidates come from all processes."})

    @property
    def title(self) -> str:
        """The objective's name."""
        return TITLES.get(self.objective, self.objective)

    def __post_init__(self) -> None:
        if self.objective == "dkd" and (self.mixup or self.cutmix or self.label_smoothing):
            raise ValueError(
                "objective 'dkd' needs one label an image: leave --mixup, --cutmix and --label_smoothing at 0."
            )

    def build_model(self) -> KDForImageClassification:
        """The student and what its objective trains beside it, with the teacher."""
        student_config = self.student_config()
        settings = {name: getattr(self, name) for name in CONFIG_FIELDS}
        if self.objective == "labels":
            model = KDForImageClassification(KDConfig(student_config=student_config, **settings))
        else:
            teacher = self.load_any_teacher()
            model = KDForImageClassification(KDConfig.for_teacher(teacher, student_config, **settings))
            model.attach_teacher(teacher)
        self.load_student(model.student.base_model)
        return model

    def describe_teacher(self, model: KDForImageClassification) -> str:
        """One line on the teacher, if there is one."""
        return "none: labels alone" if self.objective == "labels" else super().describe_teacher(model)

    def describe_objective(self, model: KDForImageClassification) -> list[tuple[str, str]]:
        """Weights and objective."""
        if self.objective == "labels":
            return [("objective", "labels alone")]
        terms = f"{self.title} {self.distillation_weight:g}, T {model.config.temperature:g}"
        if self.objective == "dkd":
            terms += f", target class {self.target_class_weight:g}, others {self.other_classes_weight:g}"
        return [("objective", f"labels {self.label_weight:g}, {terms}")]
