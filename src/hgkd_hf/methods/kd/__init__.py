"""The baselines of every comparison: labels alone, logit KD, DKD, FitNets hints, and InfoNCE in one batch."""

from .modeling import KDConfig, KDForImageClassification, KDOutput

__all__ = ["KDConfig", "KDForImageClassification", "KDOutput"]
