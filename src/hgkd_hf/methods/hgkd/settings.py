"""Settings of H-GKD, and with pixels alone SparK."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...objectives.choices import FeatureLoss, TargetNormKind
from ..base.settings import MethodSettings, setting


@dataclass
class HGKDSettings(MethodSettings):
    """H-GKD (arXiv:2309.09571) is known to us by its abstract; every choice that it leaves open is a setting.

    The defaults are what gave the best students in equal time (docs/results.md): nothing is hidden. With a
    `mask_ratio` the student infers hidden places, as the paper's does (recipe `hgkd_paper`). Without the feature term
    (`feature_weight=0, pixel_weight=1, decoder="full"`) this is SparK (arXiv:2301.03580).
    """

    teacher_input: Literal["full", "masked", "visible"] = setting(
        "full",
        "What the teacher sees: the whole crop; mask tokens in the hidden cells; or visible tokens alone, which is "
        "cheaper (needs positions visible).",
    )
    mask_ratio: float | None = setting(
        None, "Share of the cells that are hidden; default: 0, with the pixel term 0.6.", minimum=0, below=1
    )
    decoder: Literal["none", "truncated", "full"] | None = setting(
        None,
        "None: the encoder's two deepest maps predict; truncated: ends at the teacher's grid; full: at the pixels. "
        "Default: none, with a mask truncated.",
        before="truncated",
    )
    loss: FeatureLoss = setting("cosine+smooth-l1", "Distance of predicted and normalised target features.")
    smooth_l1_beta: float = setting(1.0, "Where smooth-l1 turns linear.", above=0)
    target_norm: TargetNormKind = setting(
        "whiten",
        "Of the teacher's features: each channel without what it shares with others (whiten) or by itself "
        "(standardize), each position (layer-norm), or none.",
        before="layer-norm",
    )
    positions: Literal["all", "masked", "visible"] = setting(
        "all", "Which positions are predicted: all, the hidden or the visible ones."
    )
    low_resolution_share: float | None = setting(
        None,
        "Share of the steps, the first, in which crops have 2/3 of their size; default: 0.5, with a mask 0.",
        before=0.0,
        minimum=0,
        below=1,
    )
    unmasked_share: float = setting(
        0.0, "Share of the steps, the last, in which nothing is hidden.", minimum=0, below=1
    )
    feature_weight: float = setting(1.0, "Weight of the feature term; 0: no teacher.", minimum=0)
    pixel_weight: float = setting(0.0, "Weight of the pixel term (needs decoder full).", minimum=0)

    @property
    def title(self) -> str:
        """H-GKD, or without its feature term SparK."""
        return "H-GKD" if self.feature_weight else "SparK"

    @property
    def needs_teacher(self) -> bool:
        """Pixels need none."""
        return self.feature_weight > 0

    def settle(self) -> None:
        """Pixels are predicted where they are hidden; a mask needs a decoder, and the full size from the start."""
        if self.mask_ratio is None:
            self.mask_ratio = 0.6 if self.pixel_weight else 0.0
        if self.low_resolution_share is None:
            self.low_resolution_share = 0.0 if self.mask_ratio or self.pixel_weight else 0.5
        if self.decoder is None:
            self.decoder = "truncated" if self.mask_ratio or self.pixel_weight else "none"

    def check(self) -> None:
        """Also refuse terms that cannot be computed."""
        super().check()
        if not self.feature_weight + self.pixel_weight:
            raise ValueError(
                f"feature_weight is {self.feature_weight} and pixel_weight {self.pixel_weight}: one must be above 0."
            )
        if self.pixel_weight and self.decoder != "full":
            raise ValueError(f"pixel_weight {self.pixel_weight} needs the whole decoder: set decoder to 'full'.")
        if self.decoder == "none" and self.mask_ratio:
            raise ValueError(
                f"decoder 'none' cannot infer what mask_ratio {self.mask_ratio} hides: set decoder to 'truncated', or "
                "mask_ratio to 0."
            )
        if self.teacher_input == "visible" and self.positions != "visible":
            raise ValueError(
                f"teacher_input 'visible' says nothing of hidden positions, but positions is {self.positions!r}: "
                "set it to 'visible'."
            )
        if self.unmasked_share and (self.pixel_weight or self.positions == "masked"):
            raise ValueError(
                f"unmasked_share {self.unmasked_share} leaves steps without a hidden position, which pixel_weight "
                f"{self.pixel_weight} and positions {self.positions!r} ask for: set it to 0."
            )
        if not self.mask_ratio and (self.pixel_weight or self.positions == "masked"):
            raise ValueError("mask_ratio 0 hides nothing to predict: raise it, or set positions to 'all'.")
        if self.low_resolution_share and (self.mask_ratio or self.pixel_weight):
            raise ValueError(
                f"low_resolution_share {self.low_resolution_share} changes the grid of what is hidden: leave it at 0, "
                f"or mask_ratio and pixel_weight."
            )
