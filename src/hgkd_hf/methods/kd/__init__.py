"""The baselines of every comparison: labels alone, logit KD, DKD, FitNets hints, and InfoNCE in one batch."""

from .configuration_kd import KDConfig
from .modeling_kd import KDForImageClassification, KDOutput

__all__ = ["KDConfig", "KDForImageClassification", "KDOutput"]
