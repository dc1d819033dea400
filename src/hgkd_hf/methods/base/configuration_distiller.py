"""What the configurations of distillers with a stock student share."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...teachers import ClassifierTeacher, PatchTeacher


class DistillerConfig(PreTrainedConfig):
    """Configuration of a stock student and its teacher.

    Args:
        student_config: config (or its dict) of the student. Default: ResNet-50.
        teacher_name_or_path, teacher_revision, teacher_layers, teacher_image_size: of the teacher.
        image_size: of the student's images in pixels, side or (height, width).
        image_mean, image_std: normalisation of the student's `pixel_values`.
    """

    sub_configs: ClassVar[dict[str, type]] = {"student_config": AutoConfig}

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_layers: list[int] | tuple[int, ...] = ()
    teacher_image_size: list[int] | tuple[int, ...] | None = None
    image_size: int | list[int] | tuple[int, ...] = 224
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self, **kwargs):
        if not isinstance(self.student_config, PreTrainedConfig):
            self.student_config = AutoConfig.for_model(**(self.student_config or {"model_type": "resnet"}))
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.student_config.id2label, self.student_config.label2id

    def check_choices(self, **choices: tuple[str, ...]) -> None:
        """Raise `ValueError` for a field that is none of its choices."""
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}.")

    def check_positive(self, *names: str) -> None:
        """Raise `ValueError` for a field that is not above 0."""
        for name in names:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be above 0.")

    def check_not_negative(self, *names: str) -> None:
        """Raise `ValueError` for a field below 0."""
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must not be negative.")

    @staticmethod
    def fields_of_teacher(teacher: PatchTeacher | ClassifierTeacher) -> dict[str, Any]:
        """The fields that tell which teacher it is and what it sees."""
        return {
            "teacher_name_or_path": teacher.name_or_path,
            "teacher_revision": teacher.revision,
            "teacher_layers": list(teacher.layers),
            "teacher_image_size": teacher.image_size and list(teacher.image_size),
        }
