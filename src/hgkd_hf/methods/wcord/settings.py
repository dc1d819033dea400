"""Settings of WCoRD."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.settings import LabelledSettings, setting


@dataclass
class WCoRDSettings(LabelledSettings):
    """loss = label loss + global_weight * dual term + local_weight * primal term, of arXiv:2012.08674."""

    global_weight: float = setting(0.8, "Of the dual form: pairs of one image against pairs of two.", minimum=0)
    local_weight: float = setting(0.05, "Of the primal form: transport of a batch's features.", minimum=0)
    critic_dim: int = setting(128, "Width that the critic compares features at.", minimum=1)
    epsilon: float = setting(0.1, "Entropy of the transport; small: a sharp plan.", above=0)
    iterations: int = setting(20, "Of Sinkhorn.", minimum=1)
    gather: bool = setting(False, "Compare the images of all processes.")

    @property
    def title(self) -> str:
        """The method's name."""
        return "WCoRD"
