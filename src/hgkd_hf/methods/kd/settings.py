"""Settings of the baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.settings import LabelledSettings, setting

TITLES = {
    "labels": "Labels alone",
    "kd": "Logit distillation (KD)",
    "dkd": "Decoupled distillation (DKD)",
    "hint": "FitNets hints",
    "contrastive": "InfoNCE in one batch",
}


@dataclass
class KDSettings(LabelledSettings):
    """loss = label_weight * label loss + distillation_weight * objective.

    The objectives: `"labels"`, none; `"kd"`, the teacher's softened logits (arXiv:1503.02531); `"dkd"`, the same,
    decoupled (arXiv:2203.08679); `"hint"`, the teacher's map, regressed (FitNets, arXiv:1412.6550); `"contrastive"`,
    InfoNCE between pooled features, CRD's relative without memory banks (arXiv:1910.10699).
    """

    objective: Literal["labels", "kd", "dkd", "hint", "contrastive"] = setting("kd", "What is distilled.")
    label_weight: float = setting(1.0, "Of the label loss.", minimum=0)
    distillation_weight: float = setting(1.0, "Of the objective.", minimum=0)
    temperature: float | None = setting(None, "Default: logits 4, contrastive 0.07.", above=0)
    standardize_logits: bool = setting(
        False, "kd and dkd compare the logits' z-scores over the classes (arXiv:2403.01427, with temperature 2)."
    )
    target_class_weight: float = setting(1.0, "DKD's alpha.", minimum=0)
    other_classes_weight: float = setting(8.0, "DKD's beta.", minimum=0)
    student_layer: int = setting(
        -1, "Whose map hint and contrastive take: i = i-th block (ViT) or scale (CNN), -1 = last_hidden_state."
    )
    gather: bool = setting(False, "Contrastive candidates come from all processes.")

    @property
    def title(self) -> str:
        """The objective's name."""
        return TITLES[self.objective]

    @property
    def needs_teacher(self) -> bool:
        """All objectives but labels alone."""
        return self.objective != "labels"

    @property
    def single_labels(self) -> str:
        """DKD tells the label's class from the others."""
        return "objective 'dkd'" if self.objective == "dkd" else ""

    def check(self) -> None:
        """Also refuse weights that leave nothing to learn, and logits to standardise where none are compared."""
        super().check()
        if self.standardize_logits and self.objective not in ("kd", "dkd"):
            raise ValueError(
                f"objective {self.objective!r} compares no logits: leave --standardize_logits out, or set --objective "
                f"kd or dkd."
            )
        if not self.label_weight and (self.objective == "labels" or not self.distillation_weight):
            raise ValueError(
                f"label_weight is 0, and objective {self.objective!r} with distillation_weight "
                f"{self.distillation_weight} leaves nothing to learn: raise one of the weights."
            )
