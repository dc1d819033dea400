"""What all methods share: how a setting is written, what a distiller is, and what a command needs of a method."""

from .distiller import Distiller, DistillerConfig, Teacher
from .image_classification import ImageClassificationDistiller
from .labelled import LabelledMethod, LabelledSettings
from .method import Method
from .settings import Settings, setting

__all__ = [
    "Distiller",
    "DistillerConfig",
    "ImageClassificationDistiller",
    "LabelledMethod",
    "LabelledSettings",
    "Method",
    "Settings",
    "Teacher",
    "setting",
]
