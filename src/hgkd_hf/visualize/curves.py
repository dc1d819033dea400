"""Curves of runs, from the logs in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..training.metrics_file import read_metrics
from .figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves_figure(runs: dict[str, str | Path]) -> Figure:
    """Loss and kNN accuracy over the steps, a line a run.

    Args:
        runs: the folder of each run by its name; each holds a `metrics.jsonl`.
    """
    figure = new_figure(9, 3.2)
    left, right = figure.subplots(1, 2)
    for name, folder in runs.items():
        entries = read_metrics(folder)
        _line(left, name, [(e["step"], e["loss"]) for e in entries if "loss" in e])
        accuracies = [
            (entry["step"], value) for entry in entries for key, value in entry.items() if key.endswith("knn_accuracy")
        ]
        _line(right, name, accuracies)
    left.set(xlabel="step", ylabel="loss (each method's own)", yscale="log")
    right.set(xlabel="step", ylabel="kNN accuracy")
    for axis in (left, right):
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def _line(axis, name: str, points: Sequence[tuple[int, float]]) -> None:
    if points:
        axis.plot(*zip(*points), label=name, marker="." if len(points) < 20 else None)
