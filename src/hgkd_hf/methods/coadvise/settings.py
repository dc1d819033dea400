"""Settings of Co-advise."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import LabelledSettings, setting


@dataclass
class CoAdviseSettings(LabelledSettings):
    """loss = label loss of the class token + distillation_weight * KD of each distillation token with its teacher.

    Weight and temperature are those of arXiv:2106.12378.
    """

    distillation_weight: float = setting(1.0, "Of each teacher's term.", minimum=0)
    temperature: float = setting(1.0, "Of the logits of teachers and distillation tokens.", above=0)

    @property
    def title(self) -> str:
        """The method's name."""
        return "Co-advise"
