"""TinyMIM as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from ...students.features import vit_patch_size
from ...teachers import PatchTeacher
from ..base.method import Method
from .modeling import TinyMIMForPreTraining
from .settings import TinyMIMSettings


@dataclass
class TinyMIMMethod(TinyMIMSettings, Method):
    """TinyMIM: the student's tokens relate to each other as a frozen vision transformer's do (arXiv:2301.01296)."""

    model_class = TinyMIMForPreTraining

    def check(self) -> None:
        """Also refuse a cache."""
        super().check()
        if self.teacher_cache is not None:
            raise ValueError("TinyMIM compares attention, which no cache holds: leave --teacher_cache out.")

    def load_teacher(self, student_config: PreTrainedConfig) -> PatchTeacher:
        """The teacher, at the image size at which it has as many tokens as a ViT student; for a CNN, at the crops'."""
        if self.teacher is None:
            raise ValueError("method 'tinymim' needs a teacher: name a vision transformer with --teacher.")
        patch = PatchTeacher.patch_size_of(self.teacher, revision=self.teacher_revision)
        tokens = max(1, self.image_size // (vit_patch_size(student_config) or patch))
        return self.read_teacher(PatchTeacher, image_size=self.teacher_image_size or tokens * patch)
