"""H-GKD and SparK as commands run them."""

from __future__ import annotations

from dataclasses import dataclass

from ...students.sparse_unet import SparseUNetConfig
from ...teachers import CNNTeacher, PatchTeacher, SeveralMapTeachers
from ..base.sparse_unet_method import SparseUNetMethod
from .modeling import HGKDForPreTraining, aligned_teacher_image_size
from .settings import HGKDSettings


@dataclass
class HGKDMethod(HGKDSettings, SparseUNetMethod):
    """H-GKD: a sparse CNN predicts what a vision transformer makes of the hidden cells (arXiv:2309.09571)."""

    model_class = HGKDForPreTraining
    several_teachers = SeveralMapTeachers

    def load_teacher(self, student_config: SparseUNetConfig) -> PatchTeacher | CNNTeacher:
        """The teacher, a ViT or a CNN, at the image size at which its tokens divide the student's cells."""
        if self.teacher is None:
            raise ValueError(
                "feature_weight is above 0, but there is no teacher: name one with --teacher, or set "
                "--feature_weight 0 --pixel_weight 1 --decoder full for the pixel baseline."
            )
        name, hub = self.teacher, {"revision": self.teacher_revision}
        if CNNTeacher.is_one(name, **hub):
            if self.teacher_input != "full":
                raise ValueError(
                    f"teacher_input {self.teacher_input!r} needs a vision transformer, but {name!r} is a CNN, which "
                    "sees the whole image: use 'full' (--teacher_input)."
                )
            kind, settings = CNNTeacher, {}
            patch_size = CNNTeacher.patch_size_of(name, self.teacher_layers or (-1,), **hub)
        else:
            kind, settings = PatchTeacher, {"teacher_input": self.teacher_input}
            patch_size = PatchTeacher.patch_size_of(name, **hub)
        aligned = aligned_teacher_image_size(patch_size, self.image_size, student_config)
        return self.read_teacher(kind, image_size=self.teacher_image_size or aligned, **settings)
