"""Manifold distillation for the training script."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..base.labelled import LabelledMethod
from . import ManifoldDistillationConfig, ManifoldDistillationForImageClassification

# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "student_layers",
    "alpha",
    "beta",
    "distillation",
    "temperature",
    "intra_weight",
    "inter_weight",
    "random_weight",
    "num_samples",
    "gather",
)


@dataclass
class ManifoldMethod(LabelledMethod):
    """Manifold distillation: the student's patches relate to each other as the teacher's do (arXiv:2107.01378)."""

    student_layers: list[int] = field(
        default_factory=lambda: [-1], metadata={"help": "Paired with --teacher_layers one by one."}
    )
    alpha: float = field(default=1.0, metadata={"help": "Share of the teacher's logits against the labels."})
    beta: float = field(default=1.0, metadata={"help": "Weight of the manifold loss."})
    distillation: str = field(default="soft", metadata={"help": "soft | hard: the teacher's probabilities or class."})
    temperature: float = field(default=1.0, metadata={"help": "Of the soft distillation."})
    intra_weight: float = field(default=4.0, metadata={"help": "Of relations inside an image."})
    inter_weight: float = field(default=0.1, metadata={"help": "Of relations across images."})
    random_weight: float = field(default=0.2, metadata={"help": "Of relations among random patches."})
    num_samples: int = field(default=192, metadata={"help": "Patches that the random term draws."})
    gather: bool = field(default=False, metadata={"help": "Relate the images of all processes."})

    @property
    def title(self) -> str:
        """The method's name."""
        return "Manifold distillation"

    def build_model(self) -> ManifoldDistillationForImageClassification:
        """The student, with the teacher."""
        student_config = self.student_config()
        teacher = self.load_any_teacher()
        settings = {name: getattr(self, name) for name in CONFIG_FIELDS}
        config = ManifoldDistillationConfig.for_teacher(teacher, student_config, **settings)
        model = ManifoldDistillationForImageClassification(config).attach_teacher(teacher)
        self.load_student(model.student.base_model)
        return model

    def describe_objective(self, model: ManifoldDistillationForImageClassification) -> list[tuple[str, str]]:
        """Weights and layers."""
        pairs = ", ".join(f"{s}-{t}" for s, t in zip(self.student_layers, self.teacher_layers))
        weights = f"{self.intra_weight} within, {self.inter_weight} across, {self.random_weight} at random"
        return [
            (
                "objective",
                f"labels {1 - self.alpha:g}, logits {self.alpha:g} ({self.distillation}, T {self.temperature:g}), "
                f"manifold {self.beta:g} ({weights}; layers {pairs})",
            )
        ]
