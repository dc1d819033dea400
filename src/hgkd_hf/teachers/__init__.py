"""Frozen teachers: `PatchTeacher` reads the layers of a ViT, `CNNTeacher` the maps of a CNN.

`ClassifierTeacher` has labels, and may be either. `SeveralTeachers` stand as one.

`TeacherHead` is the self-supervised head that a teacher was trained with.
"""

from .classifier_teacher import ClassifierTeacher
from .cnn_teacher import CNNTeacher
from .heads import TeacherHead
from .patch_teacher import PatchTeacher, PatchTeacherOutput
from .several import SeveralClassifiers, SeveralMapTeachers, SeveralTeachers

__all__ = [
    "CNNTeacher",
    "ClassifierTeacher",
    "PatchTeacher",
    "PatchTeacherOutput",
    "SeveralClassifiers",
    "SeveralMapTeachers",
    "SeveralTeachers",
    "TeacherHead",
]
