"""What a run's folder tells, finished or not: plain data, without machine paths and secrets."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..checkpoints.run_files import NON_FINITE_FILE, RECIPE_FILE, STUDENT_FOLDER, SUMMARY_FILE
from ..data.skipped import SKIPPED_FILE, count_skipped
from ..hub.privacy import public
from ..hub.student_card import CARD_FILE, METRICS, StudentCard
from ..methods.base.settings import as_list
from ..training.metrics_file import read_metrics

PICTURES = "pictures"
_PICTURE = re.compile(r"(?P<kind>.+)-(?P<step>\d{6,})", re.ASCII)
EVALUATIONS = ("before_", "eval_", "after_")
# Entries of a training log that are drawn by themselves, (title, name in the log); other numbers are loss terms.
TRAINING = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient's norm",
    "images_per_second": "images per second",
    "data_wait_share": "share of the time spent waiting for data",
}


@dataclass
class Chart:
    """Curves over the steps: by name, points (step, value)."""

    title: str
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def add(self, name: str, step: int, value: float) -> None:
        """Append a point."""
        self.series.setdefault(name, []).append((step, value))


@dataclass
class RunRecord:
    """A run.

    Attributes:
        name: of the run's folder.
        card: what is known of the student; None of a run that was stopped before it wrote one.
        summary: what the training script wrote at its end; empty before.
        recipe: all settings.
        charts: the curves, those that have points.
        results: metrics by (whose, metric title).
        pictures: caption -> PNG file.
        warnings: what a reader should know: steps and images that were skipped, spikes of the loss.
        steps: done so far.
    """

    name: str
    card: StudentCard | None
    summary: dict[str, Any]
    recipe: dict[str, Any]
    charts: list[Chart]
    results: dict[str, dict[str, float]]
    pictures: dict[str, Path]
    warnings: list[str]
    steps: int

    @property
    def finished(self) -> bool:
        """Whether the training script came to its end."""
        return bool(self.summary)

    @property
    def description(self) -> dict[str, str]:
        """Rows (what, value): the start summary, and what the run took."""
        if self.card is None:
            wanted = ("method", "student", "teacher", "seed", "train_seconds")
            known = {key.replace("_", " "): self.summary.get(key) for key in wanted}
            return public({key: value for key, value in known.items() if value is not None})
        run = {key.replace("_", " "): value for key, value in self.card.run.items() if value is not None}
        versions = ", ".join(f"{name} {version}" for name, version in self.card.versions.items())
        return self.card.description | run | ({"versions": versions} if versions else {})

    @classmethod
    def read(cls, run: str | Path) -> RunRecord:
        """Read a run's folder.

        Raises:
            FileNotFoundError: it has no `metrics.jsonl`.
        """
        run = Path(run)
        entries = read_metrics(run)
        cards = [path for path in (run / STUDENT_FOLDER / CARD_FILE, run / CARD_FILE) if path.is_file()]
        recipe = run / RECIPE_FILE
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8")) or {} if recipe.is_file() else {}
        paths = [text for value in settings.values() for text in as_list(value) if isinstance(text, str)]
        summary = run / SUMMARY_FILE
        return cls(
            name=run.absolute().name,
            card=StudentCard.from_dict(StudentCard.load(cards[0]).to_dict()) if cards else None,  # the public one
            summary=json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
            recipe=public({key: value for key, value in settings.items() if value not in (None, [], {}, "")}, paths),
            charts=charts(entries),
            results=results(entries),
            pictures=_pictures(run),
            warnings=_warnings(run, entries),
            steps=max((entry["step"] for entry in entries), default=0),
        )


def charts(entries: list[dict[str, Any]]) -> list[Chart]:
    """The curves of a run's log: loss and terms, evaluations, then what else was logged."""
    loss, others = Chart("loss"), {}
    for entry in entries:
        step = entry["step"]
        for name, value in entry.items():
            if not isinstance(value, int | float) or name in ("step", "epoch"):
                continue
            metric = next((name.removeprefix(prefix) for prefix in EVALUATIONS if name.startswith(prefix)), None)
            if metric in METRICS:
                title = METRICS[metric][0]
                others.setdefault(title, Chart(title)).add(title, step, value)
            elif name in TRAINING:
                others.setdefault(name, Chart(TRAINING[name])).add(TRAINING[name], step, value)
            elif "loss" in entry and (name == "loss" or name.endswith("_loss")):
                loss.add(name.replace("_", " "), step, value)
            elif "loss" in entry:
                title = name.replace("_", " ")
                others.setdefault(name, Chart(title)).add(title, step, value)
    first = [METRICS[metric][0] for metric in METRICS]
    order = {name: rank for rank, name in enumerate([*first, *TRAINING])}
    rest = sorted(others, key=lambda name: order.get(name, len(first) - 0.5))  # terms before speed
    return [chart for chart in (loss, *(others[name] for name in rest)) if chart.series]


def results(entries: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The last metrics of each kind of evaluation, by whose they are."""
    found: dict[str, dict[str, float]] = {}
    for whose, prefixes in {"before training": ("before_",), "the student": ("eval_", "after_")}.items():
        for entry in entries:
            for prefix in prefixes:
                for metric, (title, _) in METRICS.items():
                    value = entry.get(prefix + metric)
                    if value is not None:
                        found.setdefault(whose, {})[title] = value
    return found


def _pictures(run: Path) -> dict[str, Path]:
    """The last picture of each kind that was drawn while training, else those of the student's card."""
    kinds: dict[str, tuple[int, Path]] = {}
    for path in sorted((run / PICTURES).glob("*.png")):
        if found := _PICTURE.fullmatch(path.stem):  # not a file that somebody else put there
            kinds[found["kind"].replace("-", " ").capitalize()] = int(found["step"]), path
    pictures = {f"{kind}, step {step}": path for kind, (step, path) in kinds.items()}
    return pictures or {path.stem.capitalize(): path for path in sorted((run / STUDENT_FOLDER).glob("pred*.png"))}


def _warnings(run: Path, entries: list[dict[str, Any]]) -> list[str]:
    found = []
    steps = run / NON_FINITE_FILE
    if steps.is_file() and (lines := steps.read_text(encoding="utf-8").splitlines()):
        found.append(f"{len(lines)} step(s) were skipped because loss or gradient was not finite (see {steps.name}).")
    if count := count_skipped(run / SKIPPED_FILE):
        found.append(f"{count} image(s) could not be read (see {SKIPPED_FILE}).")
    spikes = [entry.get("spike_step", entry["step"]) for entry in entries if "loss_spike" in entry]
    if spikes:
        found.append(f"The loss spiked {len(spikes)} time(s), first at step {spikes[0]}.")
    return found
