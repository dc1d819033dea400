"""The card of a student: facts of its run, rendered by one short template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

TEMPLATE = Path(__file__).with_name("card_template.md")


@dataclass
class StudentCard:
    """What a student's README tells.

    Attributes:
        student: one line on the student, e.g. its class, parameters and stride.
        teacher: one line on the teacher; empty for the pixel baseline.
        teacher_id, teacher_revision: Hub id or folder name, and commit.
        dataset: Hub id or folder name.
        method: `H-GKD` or `SparK`.
        results: rows of (name, value) of the run's evaluation.
        settings: the run's resolved settings, all of them.
        versions: of the libraries.
        command: that repeats the run.
    """

    student: str
    teacher: str
    dataset: str
    method: str
    teacher_id: str | None = None
    teacher_revision: str | None = None
    results: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def render(self) -> str:
        """The README's text, metadata first."""
        tags = ["hgkd-hf", "knowledge-distillation", "masked-image-modeling", "sparse-convolution"]
        data = ModelCardData(library_name="transformers", pipeline_tag="image-feature-extraction", tags=tags)
        return str(ModelCard.from_template(data, template_path=str(TEMPLATE), **vars(self)))
