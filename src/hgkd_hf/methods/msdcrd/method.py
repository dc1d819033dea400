"""MSDCRD as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import MSDCRDForImageClassification
from .settings import MSDCRDSettings


@dataclass
class MSDCRDMethod(MSDCRDSettings, LabelledMethod):
    """MSDCRD: contrastive distillation of regions at several scales (arXiv:2502.05835; we know its abstract)."""

    model_class = MSDCRDForImageClassification
