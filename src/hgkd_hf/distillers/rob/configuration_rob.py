"""Configuration of RoB."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ...teachers import ClassifierTeacher, PatchTeacher
from ..configuration_distiller import DistillerConfig

# How sharp each method's targets are (arXiv:2301.09451; SwAV's is the epsilon of Sinkhorn-Knopp).
TEACHER_TEMPERATURES = {"dino": 0.07, "swav": 0.03, "msn": 0.025}


class RoBConfig(DistillerConfig):
    """Configuration of `RoBForPreTraining` (arXiv:2301.09451).

    The other fields are those of `DistillerConfig`; the student is any `AutoModel` for images, CNN or ViT, and the
    last of the teacher's layers, averaged over patches, is its image feature.

    Args:
        teacher_hidden_size: width of that feature.
        ssl_method: `"dino"`, `"swav"` or `"msn"`, how scores become targets and what the `"ssl"` head looks like.
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
    teacher_hidden_size: int | None = None
    ssl_method: str = "dino"
    student_head: str = "ssl"
    num_prototypes: int = 1024
    head_hidden_size: int = 2048
    teacher_temperature: float | None = None
    student_temperature: float = 0.1
    swapped: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_choices(ssl_method=tuple(TEACHER_TEMPERATURES), student_head=("ssl", "teacher_proto", "mlp"))
        if self.teacher_temperature is None:
            self.teacher_temperature = TEACHER_TEMPERATURES[self.ssl_method]
        self.check_positive("teacher_temperature", "student_temperature")
        for name, least in (("num_prototypes", 2), ("head_hidden_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least {least}.")

    @classmethod
    def for_teacher(
        cls, teacher: PatchTeacher | ClassifierTeacher, student_config: PreTrainedConfig, **kwargs
    ) -> RoBConfig:
        """The configuration for distilling `teacher` into a student; `kwargs` are the other fields."""
        fields = {"student_config": student_config.to_dict(), "teacher_hidden_size": teacher.hidden_sizes[-1]}
        return cls(**cls.fields_of_teacher(teacher) | fields | kwargs)
