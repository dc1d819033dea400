"""ReviewKD as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.labelled import LabelledMethod
from .modeling import ReviewKDForImageClassification
from .settings import ReviewKDSettings


@dataclass
class ReviewKDMethod(ReviewKDSettings, LabelledMethod):
    """ReviewKD: the student's maps, each with all deeper ones fused in, imitate the teacher's (arXiv:2104.09044)."""

    model_class = ReviewKDForImageClassification
