"""Settings of TinyMIM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.settings import MethodSettings, setting


@dataclass
class TinyMIMSettings(MethodSettings):
    """loss = sum over relations of KL(teacher's || student's), in every head and for every query (arXiv:2301.01296).

    Of the one block `--teacher_layers`: the paper takes the 18th of the 24 of a ViT-L, the last of a smaller teacher.
    """

    relations: Literal["qk+vv", "qq+kk+vv", "qq+kk+vv+qk"] = setting(
        "qk+vv", "Whose products are compared: of queries (q), keys (k) and values (v)."
    )

    @property
    def title(self) -> str:
        """The method's name."""
        return "TinyMIM"
