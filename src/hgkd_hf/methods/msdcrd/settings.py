"""MSDCRD for the training script."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..base.labelled import LabelledMethod
from . import MSDCRDConfig, MSDCRDForImageClassification

# Settings that are fields of the distiller's config under the same names.
CONFIG_FIELDS = (
    "image_size",
    "layout",
    "selection",
    "exclude_same_label",
    "temperature",
    "sample_weight",
    "feature_weight",
    "warmup_batches",
    "gather",
)


@dataclass
class MSDCRDMethod(LabelledMethod):
    """MSDCRD: contrastive distillation of regions at several scales (arXiv:2502.05835; we know its abstract)."""

    layout: str = field(default="sliding", metadata={"help": "grid | sliding: how windows move."})
    selection: str = field(default="consistent", metadata={"help": "all | consistent | sdd: which regions count."})
    exclude_same_label: bool = field(default=False, metadata={"help": "Images of one label are no negatives."})
    temperature: float = field(default=0.1, metadata={"help": "Divides the cosines."})
    sample_weight: float = field(default=1.0, metadata={"help": "Of regions told apart across images."})
    feature_weight: float = field(default=1.0, metadata={"help": "Of regions told apart within an image."})
    warmup_batches: int = field(default=0, metadata={"help": "Batches over which both weights rise."})
    gather: bool = field(default=False, metadata={"help": "Negatives come from all processes."})

    @property
    def title(self) -> str:
        """The method's name."""
        return "MSDCRD"

    def __post_init__(self) -> None:
        single = self.selection != "all" or self.exclude_same_label
        if single and (self.mixup or self.cutmix or self.label_smoothing):
            raise ValueError(
                f"selection {self.selection!r} with exclude_same_label {self.exclude_same_label} needs one label an "
                f"image: leave --mixup, --cutmix and --label_smoothing at 0, or set --selection all."
            )

    def build_model(self) -> MSDCRDForImageClassification:
        """The student and its projector, with the teacher."""
        student_config = self.student_config()
        teacher = self.load_any_teacher()
        settings = {name: getattr(self, name) for name in CONFIG_FIELDS}
        config = MSDCRDConfig.for_teacher(teacher, student_config, **settings)
        model = MSDCRDForImageClassification(config).attach_teacher(teacher)
        self.load_student(model.student.base_model)
        return model

    def describe_objective(self, model: MSDCRDForImageClassification) -> list[tuple[str, str]]:
        """Weights and regions."""
        return [
            (
                "objective",
                f"labels 1, sample-wise {self.sample_weight:g}, feature-wise {self.feature_weight:g} (regions "
                f"{self.layout}, {self.selection}; T {self.temperature:g}; {self.warmup_batches} batches of warm-up)",
            )
        ]
