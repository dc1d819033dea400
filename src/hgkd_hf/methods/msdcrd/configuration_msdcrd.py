"""Configuration of MSDCRD."""

from __future__ import annotations

from typing import get_args

from transformers import PreTrainedConfig

from ...objectives.multi_scale_contrastive import Layout, Selection
from ...students.classifier_layers import student_layers
from ...teachers import ClassifierTeacher, PatchTeacher
from ..base.configuration_distiller import DistillerConfig


class MSDCRDConfig(DistillerConfig):
    """Configuration of `MSDCRDForImageClassification`.

    An independent reading of the abstract of arXiv:2502.05835: everything below it is our choice, and a field here.
    loss = label loss + ramp * (sample_weight * sample-wise + feature_weight * feature-wise contrastive term).

    The other fields are those of `DistillerConfig`; the student is any `AutoModelForImageClassification`, a plain ViT
    or a CNN with maps at several scales, the teacher a `PatchTeacher` or a `ClassifierTeacher`.

    Args:
        teacher_hidden_size: channels of the last of its maps. Where the student's differ, a 1x1 convolution projects
            them; it is not part of the exported student.
        layout: `"grid"` or `"sliding"`, how windows of the whole, half and quarter map move.
        selection: `"all"`, `"consistent"` or `"sdd"`, how regions are weighted by what the teacher's own classifier
            says of them; all but "all" need a `ClassifierTeacher`.
        exclude_same_label: other images of the same label are no negatives.
        temperature: divides the cosines.
        sample_weight, feature_weight: weights of the two terms.
        warmup_batches: training batches over which both weights rise linearly; 0 = none.
        gather: sample-wise negatives come from all processes.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    model_type = "msdcrd"

    teacher_hidden_size: int | None = None
    layout: str = "sliding"
    selection: str = "consistent"
    exclude_same_label: bool = False
    temperature: float = 0.1
    sample_weight: float = 1.0
    feature_weight: float = 1.0
    warmup_batches: int = 0
    gather: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_choices(layout=get_args(Layout), selection=get_args(Selection))
        self.check_not_negative("sample_weight", "feature_weight", "warmup_batches")
        self.check_positive("temperature")
        student_layers(self.student_config)  # refuses a student without maps

    @classmethod
    def for_teacher(
        cls, teacher: PatchTeacher | ClassifierTeacher, student_config: PreTrainedConfig, **kwargs
    ) -> MSDCRDConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields.

        Unless given, `selection` is `"consistent"` with a teacher that classifies regions, else `"all"`.
        """
        fields = cls.fields_of_teacher(teacher) | {
            "student_config": student_config.to_dict(),
            "teacher_hidden_size": teacher.hidden_sizes[-1],
            "selection": "consistent" if getattr(teacher, "classifies_regions", False) else "all",
        }
        return cls(**fields | kwargs)
