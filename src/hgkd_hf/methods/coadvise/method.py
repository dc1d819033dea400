"""Co-advise as commands run it."""

from __future__ import annotations

from dataclasses import dataclass

from ...teachers import SeveralClassifiers
from ..base.labelled import LabelledMethod
from ..base.settings import as_list
from .modeling import NUM_TEACHERS, CoAdviseForImageClassification
from .settings import CoAdviseSettings


@dataclass
class CoAdviseMethod(CoAdviseSettings, LabelledMethod):
    """Co-advise: two classifiers of different inductive bias, each with a token of a ViT (arXiv:2106.12378)."""

    model_class = CoAdviseForImageClassification
    several_teachers = SeveralClassifiers

    def check(self) -> None:
        """Also refuse a cache."""
        super().check()
        if self.teacher_cache is not None:
            raise ValueError("Co-advise compares logits, which no cache holds: leave --teacher_cache out.")

    def build_model(self) -> CoAdviseForImageClassification:
        """Also refuses another number of teachers than there are distillation tokens."""
        count = len(as_list(self.teacher))
        if count != NUM_TEACHERS:
            raise ValueError(
                f"Co-advise learns from {NUM_TEACHERS} teachers, but --teacher names {count}: name two classifiers of "
                "different inductive bias, e.g. a CNN and a vision transformer (--teacher A B)."
            )
        return super().build_model()
