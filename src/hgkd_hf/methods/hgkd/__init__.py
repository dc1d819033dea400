"""H-GKD: masked feature distillation from a vision transformer into a sparse CNN (2309.09571, our reading)."""

from .method import HGKDMethod, aligned_teacher_image_size
from .modeling import HGKDConfig, HGKDForPreTraining, HGKDOutput

__all__ = ["HGKDConfig", "HGKDForPreTraining", "HGKDMethod", "HGKDOutput", "aligned_teacher_image_size"]
