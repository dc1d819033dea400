"""Settings of manifold distillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.settings import LabelledSettings, setting


@dataclass
class ManifoldDistillationSettings(LabelledSettings):
    """loss = (1 - alpha) * label loss + alpha * distillation loss of logits + beta * manifold loss.

    A term of weight 0 is not computed. Weights are those of the main run of arXiv:2107.01378, CaiT-S24 into DeiT-Tiny,
    which paired the blocks 1-4 and 9-12 with 1-4 and 21-24.
    """

    student_layers: list[int] = setting(
        [-1],
        "i = output of the i-th block (ViT) or scale, finest first (CNN); -1 = last_hidden_state. Paired with "
        "--teacher_layers one by one.",
    )
    alpha: float = setting(
        1.0,
        "Share of the teacher's logits against the labels: 0, any teacher will do; 1, no labels are needed.",
        minimum=0,
        maximum=1,
    )
    beta: float = setting(1.0, "Weight of the manifold loss.", minimum=0)
    distillation: Literal["soft", "hard"] = setting("soft", "The teacher's probabilities, or its class.")
    temperature: float = setting(1.0, "Of the soft distillation.", above=0)
    intra_weight: float = setting(4.0, "Of relations inside an image.", minimum=0)
    inter_weight: float = setting(0.1, "Of relations across images.", minimum=0)
    random_weight: float = setting(0.2, "Of relations among random patches.", minimum=0)
    num_samples: int = setting(192, "Patches that the random term draws.", minimum=1)
    gather: bool = setting(False, "Relate the images of all processes; the published formulation does not.")

    @property
    def title(self) -> str:
        """The method's name."""
        return "Manifold distillation"

    @property
    def needs_teacher(self) -> bool:
        """With neither logits nor manifold, labels alone are left."""
        return bool(self.alpha or self.beta)
