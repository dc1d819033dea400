"""Manifold distillation as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import ManifoldDistillationForImageClassification
from .settings import ManifoldDistillationSettings


@dataclass
class ManifoldMethod(ManifoldDistillationSettings, LabelledMethod):
    """Manifold distillation: the student's patches relate to each other as the teacher's do (arXiv:2107.01378)."""

    model_class = ManifoldDistillationForImageClassification
