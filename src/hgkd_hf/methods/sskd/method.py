"""SSKD as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import SSKDForImageClassification
from .settings import SSKDSettings


@dataclass
class SSKDMethod(SSKDSettings, LabelledMethod):
    """SSKD: the teacher's logits, and how it relates images turned in quarters to upright ones (arXiv:2006.07114)."""

    model_class = SSKDForImageClassification
