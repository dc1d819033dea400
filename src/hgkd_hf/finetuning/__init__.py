"""What a pre-trained student is for: classification, segmentation and detection on stock transformers heads."""

from __future__ import annotations

from .classification import ImageClassification
from .detection import ObjectDetection
from .segmentation import SemanticSegmentation
from .task import Task
from .trainer import FineTuningArguments, FineTuningTrainer

TASKS: dict[str, type[Task]] = {
    "image-classification": ImageClassification,
    "semantic-segmentation": SemanticSegmentation,
    "object-detection": ObjectDetection,
}

__all__ = [
    "TASKS",
    "FineTuningArguments",
    "FineTuningTrainer",
    "ImageClassification",
    "ObjectDetection",
    "SemanticSegmentation",
    "Task",
]
