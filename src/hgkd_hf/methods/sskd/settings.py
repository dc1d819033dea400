"""Settings of SSKD."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import LabelledSettings, setting


@dataclass
class SSKDSettings(LabelledSettings):
    """loss = weighted sum of label loss, KD of upright and of turned images, and of the similarities of the two.

    Weights, temperatures and the share kept are those of arXiv:2006.07114's authors for CIFAR-100.
    """

    label_weight: float = setting(0.1, "Of the label loss of the upright images.", minimum=0)
    distillation_weight: float = setting(0.9, "Of the teacher's logits of the upright images.", minimum=0)
    turned_weight: float = setting(2.7, "Of the teacher's logits of the turned images.", minimum=0)
    similarity_weight: float = setting(10.0, "Of the similarities of turned and upright images.", minimum=0)
    temperature: float = setting(4.0, "Of the logits.", above=0)
    similarity_temperature: float = setting(0.5, "Divides the similarities.", above=0)
    wrong_share: float = setting(
        0.75, "Of the views whose own image the teacher does not find, the share that is kept.", minimum=0, maximum=1
    )
    gather: bool = setting(False, "Similarities reach over the images of all processes.")

    @property
    def title(self) -> str:
        """The method's name."""
        return "SSKD"
