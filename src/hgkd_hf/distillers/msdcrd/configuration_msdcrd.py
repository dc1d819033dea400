"""Configuration of MSDCRD."""

from __future__ import annotations

from typing import Any, ClassVar, get_args

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...objectives.multi_scale_contrastive import Layout, Selection
from ...students.classifier_layers import student_layers
from ...teachers import PatchTeacher
from ...teachers.classifier_teacher import ClassifierTeacher


class MSDCRDConfig(PreTrainedConfig):
    """Configuration of `MSDCRDForImageClassification`.

    An independent reading of the abstract of arXiv:2502.05835: everything below it is our choice, and a field here.
    loss = label loss + ramp * (sample_weight * sample-wise + feature_weight * feature-wise contrastive term).

    Args:
        student_config: config (or its dict) of any `AutoModelForImageClassification`: a plain ViT, or a CNN with maps
            at several scales. Its `num_labels` are the task's. Default: ResNet-50.
        teacher_name_or_path, teacher_revision: of the teacher, a `PatchTeacher` or a `ClassifierTeacher`.
        teacher_hidden_size: channels of the last of its maps. Where the student's differ, a 1x1 convolution projects
            them; it is not part of the exported student.
        image_mean, image_std: normalisation of the student's `pixel_values`.
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
    sub_configs: ClassVar[dict[str, type]] = {"student_config": AutoConfig}

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_hidden_size: int | None = None
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    layout: str = "sliding"
    selection: str = "consistent"
    exclude_same_label: bool = False
    temperature: float = 0.1
    sample_weight: float = 1.0
    feature_weight: float = 1.0
    warmup_batches: int = 0
    gather: bool = False

    def __post_init__(self, **kwargs):
        if not isinstance(self.student_config, PreTrainedConfig):
            self.student_config = AutoConfig.for_model(**(self.student_config or {"model_type": "resnet"}))
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.student_config.id2label, self.student_config.label2id
        for name, choices in (("layout", get_args(Layout)), ("selection", get_args(Selection))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        for name in ("sample_weight", "feature_weight", "warmup_batches"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must not be negative.")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but it must be above 0.")
        student_layers(self.student_config)  # refuses a student without maps

    @classmethod
    def for_teacher(
        cls, teacher: PatchTeacher | ClassifierTeacher, student_config: PreTrainedConfig, **kwargs
    ) -> MSDCRDConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields.

        Unless given, `selection` is `"consistent"` with a teacher that classifies regions, else `"all"`.
        """
        fields = {
            "student_config": student_config.to_dict(),
            "teacher_name_or_path": teacher.name_or_path,
            "teacher_revision": teacher.revision,
            "teacher_hidden_size": teacher.hidden_sizes[-1],
            "selection": "consistent" if getattr(teacher, "classifies_regions", False) else "all",
        }
        return cls(**fields | kwargs)
