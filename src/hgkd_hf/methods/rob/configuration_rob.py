"""Configuration of RoB."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ...teachers import ClassifierTeacher, PatchTeacher, TeacherHead
from ..base.configuration_distiller import DistillerConfig

# How sharp each method's targets are (arXiv:2301.09451; SwAV's is the epsilon of Sinkhorn-Knopp).
TEACHER_TEMPERATURES = {"dino": 0.07, "ibot": 0.07, "swav": 0.03, "msn": 0.025}


class RoBConfig(DistillerConfig):
    """Configuration of `RoBForPreTraining` (arXiv:2301.09451).

    The other fields are those of `DistillerConfig`; the student is any `AutoModel` for images, CNN or ViT, and the
    last of the teacher's layers, averaged over patches, is its image feature.

    Args:
        teacher_hidden_size: width of that feature or, with the teacher's own head, of the head's embedding.
        teacher_head: file of the teacher's own head (see `TeacherHead`), which then takes the class token; None:
            prototypes are fitted to the features.
        ssl_method: `"dino"`, `"swav"`, `"ibot"` or `"msn"`: how scores become targets and what the `"ssl"` head looks
            like. `"ibot"` adds a term for the patches that are hidden from the student, which must be a ViT.
        student_head: `"ssl"`: the method's own head with its own prototypes; `"teacher_proto"`: a projector to the
            teacher's prototypes; `"mlp"`: two linear layers to the scores (with BatchNorm between them for a CNN).
        num_prototypes: K (paper: 65536 for dino, 8192 for ibot, 3000 for swav, 1024 for msn).
        head_hidden_size: width inside the head.
        teacher_temperature: of the targets; None = the method's, 0.07, 0.03 or 0.025.
        student_temperature: of the student's scores.
        swapped: each teacher crop supervises every view but its own, as in the methods RoB starts from, instead of
            its own and the local ones.
        patch_weight: weight of iBOT's patch term.
        token_drop_ratio: share of the patch tokens of global crops that a ViT student does not see (MSN; paper: 0.15
            for a ViT-S, 0.1 for a ViT-Ti); one choice a batch.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    model_type = "rob"
    teacher_hidden_size: int | None = None
    teacher_head: str | None = None
    ssl_method: str = "dino"
    student_head: str = "ssl"
    num_prototypes: int = 1024
    head_hidden_size: int = 2048
    teacher_temperature: float | None = None
    student_temperature: float = 0.1
    swapped: bool = False
    patch_weight: float = 1.0
    token_drop_ratio: float = 0.0

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_choices(ssl_method=tuple(TEACHER_TEMPERATURES), student_head=("ssl", "teacher_proto", "mlp"))
        if self.teacher_temperature is None:
            self.teacher_temperature = TEACHER_TEMPERATURES[self.ssl_method]
        self.check_positive("teacher_temperature", "student_temperature")
        self.check_not_negative("patch_weight")
        if not 0 <= self.token_drop_ratio < 1:
            raise ValueError(f"token_drop_ratio is {self.token_drop_ratio}, but it must be in [0, 1).")
        if not self.student_grid and (self.ssl_method == "ibot" or self.token_drop_ratio):
            wanted = "ssl_method 'ibot'" if self.ssl_method == "ibot" else f"token_drop_ratio {self.token_drop_ratio}"
            raise ValueError(
                f"{wanted} hides patches from a vision transformer, but the student is a "
                f"{self.student_config.model_type} model: take a ViT, or dino, swav or msn without dropping."
            )
        for name, least in (("num_prototypes", 2), ("head_hidden_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, but it must be at least {least}.")

    @property
    def student_grid(self) -> tuple[int, int] | None:
        """(rows, columns) of a ViT student's patches in a global crop; None for a CNN."""
        patch = getattr(self.student_config, "patch_size", None)
        if not isinstance(patch, int) or not hasattr(self.student_config, "num_attention_heads"):
            return None
        sides = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
        return sides[0] // patch, sides[1] // patch

    @classmethod
    def for_teacher(
        cls,
        teacher: PatchTeacher | ClassifierTeacher,
        student_config: PreTrainedConfig,
        head: TeacherHead | None = None,
        **kwargs,
    ) -> RoBConfig:
        """The configuration for distilling `teacher` (with its own `head`) into a student.

        `kwargs` are the other fields. A head decides the number of prototypes.
        """
        fields = {"student_config": student_config.to_dict(), "teacher_hidden_size": teacher.hidden_sizes[-1]}
        if head is not None:
            kwargs["num_prototypes"], fields["teacher_hidden_size"] = head.prototypes.shape
            fields["teacher_head"] = head.name_or_path or "given"
        return cls(**cls.fields_of_teacher(teacher) | fields | kwargs)
