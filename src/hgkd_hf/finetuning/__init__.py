"""What a pre-trained student is for: classification, segmentation and detection on stock transformers heads."""

from .classification import ImageClassification
from .models import normalisation
from .trainer import FineTuningArguments, FineTuningTrainer

TASKS = {task.name: task for task in (ImageClassification,)}

__all__ = ["TASKS", "FineTuningArguments", "FineTuningTrainer", "ImageClassification", "normalisation"]
