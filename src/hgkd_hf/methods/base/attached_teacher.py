"""The teacher of a distiller: attached, never owned."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ...teachers import ClassifierTeacher, PatchTeacher

Teacher = PatchTeacher | ClassifierTeacher


class AttachedTeacherMixin:
    """Holds a frozen teacher outside the module tree.

    So it is in no state dict, checkpoint, optimizer or DDP bucket, and `from_pretrained` need not know it: it is
    attached to a built or loaded model, and a forward that needs one says so when there is none.
    """

    _attached: tuple[Teacher, ...] = ()

    def attach_teacher(self, teacher: Teacher) -> AttachedTeacherMixin:
        """Let `teacher` teach; returns self.

        Raises:
            ValueError: its features are not those that this model was configured for.
        """
        self.check_teacher(teacher)
        self._attached = (teacher.requires_grad_(False).eval(),)  # a tuple: a module attribute would be registered
        return self

    def check_teacher(self, teacher: Teacher) -> None:
        """Raise `ValueError` if `teacher` does not fit this model's configuration."""

    @property
    def teacher(self) -> Teacher:
        """The attached teacher.

        Raises:
            RuntimeError: none is attached.
        """
        if not self._attached:
            wanted = getattr(self.config, "teacher_name_or_path", None) or "<teacher>"
            raise RuntimeError(
                f"{type(self).__name__} has no teacher: attach one with "
                f"model.attach_teacher(PatchTeacher.from_pretrained({wanted!r}, ...))."
            )
        return self._attached[0]

    def teach(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> ModelOutput:
        """What the teacher sees in images normalised for the student: its output, with `feature_maps` (B, D, th, tw).

        The student's normalisation (`config.image_mean`, `config.image_std`) is undone, since a teacher has its own.
        """
        teacher = self.teacher
        if next(teacher.parameters()).device != pixel_values.device:
            teacher.to(pixel_values.device)
        with (
            torch.no_grad(),
            torch.autocast(pixel_values.device.type, enabled=False),
        ):  # the teacher's dtype is its own
            mean = _channels(self.config.image_mean, pixel_values)
            std = _channels(self.config.image_std, pixel_values)
            return teacher((pixel_values * std + mean).clamp(0, 1), bool_masked_pos)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).view(1, -1, 1, 1)
