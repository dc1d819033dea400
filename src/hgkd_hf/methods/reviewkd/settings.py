"""Settings of ReviewKD."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import LabelledSettings, setting


@dataclass
class ReviewKDSettings(LabelledSettings):
    """loss = label loss + ramp * review_weight * sum over levels of the hierarchical context loss.

    arXiv:2104.09044 weights the review by 0.6 to 8, by the pair of networks, and lets it rise over the first 20 of 240
    epochs, a share of 0.083.
    """

    student_layers: list[int] = setting(
        [-1],
        "i = output of the i-th block (ViT) or scale (CNN); -1 = last_hidden_state. Finest first, paired with "
        "--teacher_layers one by one; the pooled features are one level more.",
    )
    review_weight: float = setting(1.0, "Of the review.", minimum=0)
    warmup_share: float = setting(
        0.0, "Share of the steps over which the review's weight rises linearly.", minimum=0, maximum=1
    )

    @property
    def title(self) -> str:
        """The method's name."""
        return "ReviewKD"
