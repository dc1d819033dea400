"""The quickstart's page: pictures first, then the table and its reading; one file, no request to anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..report.page import environment, stylesheet
from .comparison import HEADS, Comparison


def write_page(
    path: Path,
    comparison: Comparison,
    pictures: Mapping[str, Path],
    runs: Mapping[str, Path],
    **facts: int | bool,
) -> None:
    """Write the page.

    Args:
        path: the file.
        comparison: the table.
        pictures: files by caption.
        runs: folders beside the page, each with a report of its own, by name.
        facts: seed, seconds and short.
    """
    template = environment().from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    shown = {"comparison": comparison, "pictures": pictures, "runs": runs, "heads": HEADS, **facts}
    path.write_text(template.render(style=stylesheet(), **shown), encoding="utf-8")
