"""The tasks by name, as commands know them."""

from __future__ import annotations

from .classification import ImageClassification
from .detection import ObjectDetection
from .segmentation import SemanticSegmentation
from .task import Task

TASKS: dict[str, type[Task]] = {
    "image-classification": ImageClassification,
    "semantic-segmentation": SemanticSegmentation,
    "object-detection": ObjectDetection,
}
