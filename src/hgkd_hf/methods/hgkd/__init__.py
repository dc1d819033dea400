"""H-GKD: masked feature distillation from a vision transformer into a sparse CNN (2309.09571, our reading)."""

from .configuration_hgkd import HGKDConfig, aligned_teacher_image_size
from .modeling_hgkd import HGKDForPreTraining, HGKDOutput

__all__ = ["HGKDConfig", "HGKDForPreTraining", "HGKDOutput", "aligned_teacher_image_size"]
