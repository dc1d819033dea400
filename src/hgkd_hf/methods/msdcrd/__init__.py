"""MSDCRD: contrastive distillation of local regions at several scales; an independent reading of the abstract."""

from .configuration_msdcrd import MSDCRDConfig
from .modeling_msdcrd import MSDCRDForImageClassification, MSDCRDOutput

__all__ = ["MSDCRDConfig", "MSDCRDForImageClassification", "MSDCRDOutput"]
