"""Frozen teachers: `PatchTeacher` reads the layers of a ViT, `ClassifierTeacher` has labels and may be a CNN."""

from .classifier_teacher import ClassifierTeacher
from .patch_teacher import PatchTeacher, PatchTeacherOutput

__all__ = ["ClassifierTeacher", "PatchTeacher", "PatchTeacherOutput"]
