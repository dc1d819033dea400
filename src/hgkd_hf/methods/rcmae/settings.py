"""Settings of RC-MAE."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import MethodSettings, setting


@dataclass
class RCMAESettings(MethodSettings):
    """loss = pixel loss + consistency_weight * consistency with the average of the student's earlier weights.

    Weight and momentum are those of arXiv:2210.02077, the mask ratio is SparK's (arXiv:2301.03580) for CNNs. Without
    the second term this is SparK: `--method hgkd --feature_weight 0 --pixel_weight 1 --decoder full`.
    """

    mask_ratio: float = setting(0.6, "Share of the cells that are hidden.", above=0, below=1)
    consistency_weight: float = setting(1.0, "Of the distance to the average's reconstruction.", above=0)
    momentum: float = setting(
        0.996, "Of the average in the first step; it rises to 1 as a cosine. Lower for short runs.", minimum=0, below=1
    )

    @property
    def title(self) -> str:
        """The method's name."""
        return "RC-MAE"

    @property
    def needs_teacher(self) -> bool:
        """The student's own average is the teacher."""
        return False
