"""Fine-grained manifold distillation (2107.01378) of a ViT into any image classifier of transformers."""

from .configuration_manifold import ManifoldDistillationConfig
from .modeling_manifold import ManifoldDistillationForImageClassification, ManifoldDistillationOutput

__all__ = [
    "ManifoldDistillationConfig",
    "ManifoldDistillationForImageClassification",
    "ManifoldDistillationOutput",
]
