"""WCoRD as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import WCoRDForImageClassification
from .settings import WCoRDSettings


@dataclass
class WCoRDMethod(WCoRDSettings, LabelledMethod):
    """WCoRD: Wasserstein contrastive distillation of pooled features in one batch (arXiv:2012.08674)."""

    model_class = WCoRDForImageClassification
