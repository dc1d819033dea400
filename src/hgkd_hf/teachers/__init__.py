"""Frozen teachers: `PatchTeacher` reads the layers of a ViT, `ClassifierTeacher` has labels and may be a CNN.

`TeacherHead` is the self-supervised head that a teacher was trained with.
"""

from .classifier_teacher import ClassifierTeacher
from .heads import TeacherHead
from .patch_teacher import PatchTeacher, PatchTeacherOutput

__all__ = ["ClassifierTeacher", "PatchTeacher", "PatchTeacherOutput", "TeacherHead"]
