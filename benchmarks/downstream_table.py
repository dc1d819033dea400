"""The table and the curves of `downstream.py` and `dense.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = {
    "knn_accuracy": "kNN",
    "linear_accuracy": "linear",
    "10_shot_accuracy": "10-shot",
    "finetuned_accuracy": "fine-tuned",
    "steps": "steps",
    "process_seconds": "pre-training [s]",
    "teach_seconds": "cache [s]",
}
WHOLE_NUMBERS = ("steps", "process_seconds", "teach_seconds", "finetune_seconds")


def summarise(
    cells: dict[str, list[dict[str, float]]], columns: Iterable[str] = COLUMNS
) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean, sample deviation (None for one seed) and values of each row and column."""
    table = {}
    for row, seeds in cells.items():
        for column in columns:
            values = [cell[column] for cell in seeds if column in cell]
            if values:
                deviation = statistics.stdev(values) if len(values) > 1 else None
                entry = {"mean": statistics.fmean(values), "deviation": deviation, "values": values}
                table.setdefault(row, {})[column] = entry
    return table


def markdown(table: dict[str, dict[str, dict[str, Any]]], columns: dict[str, str] = COLUMNS) -> str:
    """The table under the headings `columns`, accuracies in per cent."""
    lines = ["| pre-training | " + " | ".join(columns.values()) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row, found in table.items():
        entries = [entry_text(found.get(column), whole=column in WHOLE_NUMBERS) for column in columns]
        lines.append(f"| {row} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def entry_text(entry: dict[str, Any] | None, whole: bool) -> str:
    if entry is None:
        return "–"
    scale, digits = (1, 0) if whole else (100, 1)
    text = f"{scale * entry['mean']:.{digits}f}"
    return text if entry["deviation"] is None else f"{text} ± {scale * entry['deviation']:.{digits}f}"


def payback(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """After how many students a cache is paid: its seconds, by those that its teacher would have taken live."""
    live, cached = table.get("hgkd", {}), table.get("hgkd-cached", {})
    if not all("process_seconds" in row and "steps" in row for row in (live, cached)):
        return ""
    seconds = [row["process_seconds"]["mean"] / row["steps"]["mean"] for row in (live, cached)]
    saved = cached["steps"]["mean"] * (seconds[0] - seconds[1])
    if saved <= 0:
        return "\nThe cache saves no time.\n"
    wrote = cached["teach_seconds"]["mean"]
    return (
        f"\nThe cache took {wrote:.0f} s and saves each student {saved:.0f} s of teacher: it is paid after "
        f"{wrote / saved:.1f} students.\n"
    )


def curves(tables: dict[str, dict[str, dict[str, dict[str, Any]]]], file: Path) -> None:
    """Draw kNN, linear and 10-shot accuracy against process seconds: a line a row, a point a table, a panel a set."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name.partition(",")[0] for name in tables))
    columns = [column for column in COLUMNS if column.endswith("accuracy")]
    figure = Figure(figsize=(4 * len(columns), 3.2 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for line, name in enumerate(names):
        parts = [table for key, table in tables.items() if key.partition(",")[0] == name]
        for axis, column in zip(axes[line], columns):
            for row in dict.fromkeys(row for table in parts for row in table):
                points = sorted(_points(parts, row, column))
                if points:
                    axis.plot(*zip(*points), marker="o", label=row)
            axis.set(title=f"{name}: {COLUMNS[column]}", xlabel="process seconds", ylabel="accuracy")
    axes[0, 0].legend(fontsize=7)
    figure.savefig(file, dpi=110)


def _points(tables: Iterable[dict[str, dict[str, Any]]], row: str, column: str) -> list[tuple[float, float]]:
    """(seconds, accuracy) of a row in each table that has both."""
    cells = [table[row] for table in tables if row in table]
    return [
        (cell["process_seconds"]["mean"], cell[column]["mean"])
        for cell in cells
        if "process_seconds" in cell and column in cell
    ]
