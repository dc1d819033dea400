"""Settings of RoB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.command_settings import CommandSettings
from ..base.settings import MethodSettings, setting

TITLES = {"dino": "DINO", "swav": "SwAV", "ibot": "iBOT", "msn": "MSN"}


@dataclass
class RoBSettings(MethodSettings):
    """RoB (arXiv:2301.09451): the student learns which prototypes a frozen teacher assigns images to.

    `ssl_method` decides how scores become targets and what the `"ssl"` head looks like; `"ibot"` adds a term for the
    patches that are hidden from the student, which must be a ViT. The paper has 65536 prototypes for dino, 8192 for
    ibot, 3000 for swav, 1024 for msn, and drops 0.15 of the tokens for a ViT-S, 0.1 for a ViT-Ti.
    """

    ssl_method: Literal["dino", "swav", "ibot", "msn"] = setting("dino", "The method whose branch is replaced.")
    teacher_head: str | None = setting(None, "File with the teacher's own head; none: prototypes are fitted.")
    student_head: Literal["ssl", "teacher_proto", "mlp"] = setting(
        "ssl", "The method's own head and prototypes; a projector to the teacher's prototypes; two linear layers."
    )
    num_prototypes: int = setting(1024, "Prototypes that images are assigned to.", minimum=2)
    head_hidden_size: int = setting(2048, "Width inside the student's head.", minimum=1)
    teacher_temperature: float | None = setting(
        None, "Of the targets; default: dino, ibot 0.07, swav 0.03, msn 0.025.", above=0
    )
    student_temperature: float = setting(0.1, "Of the student's scores.", above=0)
    swapped: bool = setting(False, "A teacher crop supervises every view but its own (the original rule).")
    patch_weight: float = setting(1.0, "Of iBOT's term for hidden patches.", minimum=0)
    token_drop_ratio: float = setting(
        0.0, "Share of a ViT student's tokens dropped from global crops (MSN); one choice a batch.", minimum=0, below=1
    )

    @property
    def title(self) -> str:
        """RoB with the method whose branch it replaces."""
        return f"RoB-{TITLES[self.ssl_method]}"


@dataclass
class RoBCommandSettings(CommandSettings):
    """What the command has beside: the crops, and the images that prototypes are fitted to."""

    crop_scale: list[float] = setting([0.25, 1.0], "Share of the area that a global crop shows.")
    prototype_samples: int = setting(20_000, "Training images to whose features the prototypes are fitted.", minimum=1)
    global_crops: int = setting(2, "Crops of --image_size, which the teacher sees too.", minimum=1)
    local_crops: int = setting(8, "Small crops for the student alone.", minimum=0)
    local_crop_size: int = setting(96, "Pixels of the local crops.", minimum=1)
    local_crop_scale: list[float] = setting([0.05, 0.25], "Share of the area that a local crop shows.")
    color_distortion: float = setting(0.5, "Strength of colour jitter and greying; 0: none.", minimum=0, maximum=1)
    blur_probability: list[float] = setting(
        [1.0, 0.1, 0.5], "Of the first global crop, the others, local ones.", minimum=0, maximum=1
    )
    solarize_probability: list[float] = setting(
        [0.0, 0.2, 0.0], "Of the first global crop, the others, local ones.", minimum=0, maximum=1
    )
