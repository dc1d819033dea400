"""MSDCRD: contrastive distillation of local regions at several scales; an independent reading of the abstract."""

from .modeling import MSDCRDConfig, MSDCRDForImageClassification, MSDCRDOutput

__all__ = ["MSDCRDConfig", "MSDCRDForImageClassification", "MSDCRDOutput"]
