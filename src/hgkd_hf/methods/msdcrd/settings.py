"""Settings of MSDCRD."""

from __future__ import annotations

from dataclasses import dataclass

from ...objectives.choices import Layout, Selection
from ..base.settings import LabelledSettings, setting


@dataclass
class MSDCRDSettings(LabelledSettings):
    """loss = label loss + ramp * (sample_weight * sample-wise + feature_weight * feature-wise contrastive term).

    An independent reading of the abstract of arXiv:2502.05835: everything below it is our choice, and a setting.
    """

    layout: Layout = setting("sliding", "How windows of the whole, half and quarter map move.")
    selection: Selection = setting(
        "consistent",
        "Which regions count, by what the teacher's own classifier says of them; all but 'all' need a classifier.",
    )
    exclude_same_label: bool = setting(False, "Do not use other images of the same label as negatives.")
    temperature: float = setting(0.1, "Divides the cosines.", above=0)
    sample_weight: float = setting(1.0, "Of regions told apart across images.", minimum=0)
    feature_weight: float = setting(1.0, "Of regions told apart within an image.", minimum=0)
    warmup_batches: int = setting(0, "Training batches over which both weights rise linearly.", minimum=0)
    gather: bool = setting(False, "Negatives come from all processes.")

    @property
    def title(self) -> str:
        """The method's name."""
        return "MSDCRD"

    @property
    def single_labels(self) -> str:
        """Regions are selected, or negatives left out, by the image's class."""
        if self.selection == "all" and not self.exclude_same_label:
            return ""
        return f"selection {self.selection!r} with exclude_same_label {self.exclude_same_label}"
