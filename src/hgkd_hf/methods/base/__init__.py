"""What all methods share: how a setting is written, and what a distiller is; `method.py`: what a command needs."""

from .distiller import Distiller, DistillerConfig, Teacher
from .image_classification import ImageClassificationDistiller
from .settings import LabelledSettings, Settings, setting

__all__ = [
    "Distiller",
    "DistillerConfig",
    "ImageClassificationDistiller",
    "LabelledSettings",
    "Settings",
    "Teacher",
    "setting",
]
