"""Settings of RoB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.settings import Settings, setting

TITLES = {"dino": "DINO", "swav": "SwAV", "ibot": "iBOT", "msn": "MSN"}


@dataclass
class RoBSettings(Settings):
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
