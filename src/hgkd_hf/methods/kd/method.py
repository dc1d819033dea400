"""The baselines as commands run them."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import KDForImageClassification
from .settings import KDSettings


@dataclass
class KDMethod(KDSettings, LabelledMethod):
    """Baselines: labels alone, logit KD, DKD, FitNets hints, InfoNCE in one batch (CRD without memory banks)."""

    model_class = KDForImageClassification
