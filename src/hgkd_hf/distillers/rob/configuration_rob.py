"""Configuration of RoB."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...teachers import PatchTeacher

# How sharp each method's targets are (arXiv:2301.09451; SwAV's is the epsilon of Sinkhorn-Knopp).
TEACHER_TEMPERATURES = {"dino": 0.07, "swav": 0.03, "msn": 0.025}


class RoBConfig(PreTrainedConfig):
    """Configuration of `RoBForPreTraining` (arXiv:2301.09451).

    Args:
        student_config: config (or its dict) of any `AutoModel` for images, CNN or ViT. Default: ResNet-50.
        teacher_name_or_path, teacher_revision, teacher_layers, teacher_image_size: of the `PatchTeacher`; the last of
            its layers, averaged over patches, is its image feature.
        teacher_hidden_size: width of that feature.
        image_mean, image_std: normalisation of the student's `pixel_values`.
        method: `"dino"`, `"swav"` or `"msn"`, how scores become targets and what the `"ssl"` head looks like.
        student_head: `"ssl"`: the method's own head with its own prototypes; `"teacher_proto"`: a projector to the
            teacher's prototypes; `"mlp"`: two linear layers to the scores (with BatchNorm between them for a CNN).
        num_prototypes: K (paper: 65536 for dino, 3000 for swav, 1024 for msn).
        head_hidden_size: width inside the head.
        teacher_temperature: of the targets; None = the method's, 0.07, 0.03 or 0.025.
        student_temperature: of the student's scores.
        swapped: each teacher crop supervises every view but its own, as in the methods RoB starts from, instead of
            its own and the local ones.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    model_type = "rob"
    sub_configs: ClassVar[dict[str, type]] = {"student_config": AutoConfig}

    student_config: dict[str, Any] | PreTrainedConfig | None = None
    teacher_name_or_path: str | None = None
    teacher_revision: str | None = None
    teacher_layers: list[int] | tuple[int, ...] = ()
    teacher_image_size: list[int] | tuple[int, ...] | None = None
    teacher_hidden_size: int | None = None
    image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_DEFAULT_STD)
    method: str = "dino"
    student_head: str = "ssl"
    num_prototypes: int = 1024
    head_hidden_size: int = 2048
    teacher_temperature: float | None = None
    student_temperature: float = 0.1
    swapped: bool = False

    def __post_init__(self, **kwargs):
        if not isinstance(self.student_config, PreTrainedConfig):
            self.student_config = AutoConfig.for_model(**(self.student_config or {"model_type": "resnet"}))
        super().__post_init__(**kwargs)
        for name, choices in (
            ("method", tuple(TEACHER_TEMPERATURES)),
            ("student_head", ("ssl", "teacher_proto", "mlp")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        if self.teacher_temperature is None:
            self.teacher_temperature = TEACHER_TEMPERATURES[self.method]
        for name in ("teacher_temperature", "student_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be above 0.")
        for name, least in (("num_prototypes", 2), ("head_hidden_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least {least}.")

    @classmethod
    def for_teacher(cls, teacher: PatchTeacher, student_config: PreTrainedConfig, **kwargs) -> RoBConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields."""
        return cls(
            student_config=student_config.to_dict(),
            teacher_name_or_path=teacher.name_or_path,
            teacher_revision=teacher.revision,
            teacher_layers=list(teacher.layers),
            teacher_image_size=list(teacher.image_size),
            teacher_hidden_size=teacher.hidden_sizes[-1],
            **kwargs,
        )
