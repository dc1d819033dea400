"""H-GKD: masked feature distillation from a vision transformer into a sparse CNN (2309.09571, our reading)."""

from .modeling import HGKDConfig, HGKDForPreTraining, HGKDOutput, aligned_teacher_image_size

__all__ = ["HGKDConfig", "HGKDForPreTraining", "HGKDOutput", "aligned_teacher_image_size"]
