"""Fine-grained manifold distillation (2107.01378) of a ViT into any image classifier of transformers."""

from .classifier_teacher import ClassifierTeacher
from .configuration_manifold import ManifoldDistillationConfig
from .modeling_manifold import ManifoldDistillationForImageClassification, ManifoldDistillationOutput

__all__ = [
    "ClassifierTeacher",
    "ManifoldDistillationConfig",
    "ManifoldDistillationForImageClassification",
    "ManifoldDistillationOutput",
]
