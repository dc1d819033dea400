"""The page: everything inside one file, no request to anywhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import jinja2
import yaml

from ..checkpoints.whole_folders import write_whole
from .record import RunRecord

HERE = Path(__file__).parent
REPORT_FILE = "report.html"


def write_report(run: str | Path, path: str | Path | None = None) -> Path:
    """Write a run's report; it can be read during the run, and be written again at any time.

    Args:
        run: the run's folder.
        path: the file; None: `report.html` in the folder.

    Raises:
        FileNotFoundError: the folder holds no run.
    """
    path = Path(path or Path(run, REPORT_FILE))
    text = render(RunRecord.read(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)  # whoever looks at it sees the old page or the new one
    return path


def render(record: RunRecord) -> str:
    """The page as text."""
    template = environment().from_string((HERE / "page.html").read_text(encoding="utf-8"))
    data = [{"title": chart.title, "series": chart.series} for chart in record.charts]
    card = record.card
    changed = {name: record.recipe[name] for name in card.changed if name in record.recipe} if card else {}
    return template.render(
        record=record,
        method=card.about.name if card else record.summary.get("method", ""),
        summary=card.summary if card else "",
        columns=list(dict.fromkeys(title for row in record.results.values() for title in row)),
        changed=_yaml(changed),
        recipe=_yaml(record.recipe),
        command=card.command if card else "",
        # "<" written so that no string can end the script element
        data=json.dumps(data).replace("<", "\\u003c"),
        style=stylesheet(),
        script=(HERE / "charts.js").read_text(encoding="utf-8"),
    )


def environment() -> jinja2.Environment:
    """For templates of pages: what is missing is an error, text is escaped, `| png` embeds a file."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["png"] = lambda file: base64.b64encode(file.read_bytes()).decode()
    return environment


def stylesheet() -> str:
    """The style of all pages."""
    return (HERE / "page.css").read_text(encoding="utf-8")


def _yaml(values: dict) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""
