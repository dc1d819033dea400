"""The baselines of every comparison: labels alone, logit KD, DKD, FitNets hints, and InfoNCE in one batch."""

from .method import KDMethod
from .modeling import KDConfig, KDForImageClassification, KDOutput

__all__ = ["KDConfig", "KDForImageClassification", "KDMethod", "KDOutput"]
