"""What a pre-trained student is for: classification, segmentation and detection on stock transformers heads."""

from __future__ import annotations

from collections.abc import Sequence

from ..recipe import parse_recipe, recipe_value
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
    "parse_task",
]


def parse_task(arguments: Sequence[str] | None = None, description: str | None = None) -> tuple:
    """Read recipe and flags into the settings of the task that they name, and `FineTuningArguments`.

    Only the settings of that task are known: those of another are an error. See `parse_recipe`.

    Raises:
        ValueError: there is no such task.
    """
    name = recipe_value("task", arguments) or "image-classification"
    if name not in TASKS:
        raise ValueError(f"task is {name!r}: choose one of {', '.join(TASKS)} (--task).")
    return parse_recipe((TASKS[name], FineTuningArguments), arguments, description)
