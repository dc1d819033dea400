"""Frozen teachers: `PatchTeacher` reads the layers of a ViT, `CNNTeacher` the maps of a CNN.

`ClassifierTeacher` has labels, and may be either.

`TeacherHead` is the self-supervised head that a teacher was trained with.
"""

from .classifier_teacher import ClassifierTeacher
from .cnn_teacher import CNNTeacher
from .heads import TeacherHead
from .patch_teacher import PatchTeacher, PatchTeacherOutput

__all__ = ["CNNTeacher", "ClassifierTeacher", "PatchTeacher", "PatchTeacherOutput", "TeacherHead"]
