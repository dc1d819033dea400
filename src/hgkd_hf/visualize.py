"""Pictures of what a student learned. Needs matplotlib (extra `demo`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .masking import expand_mask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .distillers.hgkd import HGKDForPreTraining


def pca_colours(reference: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features as colours: the first three principal components of `reference`, one basis for all.

    Args:
        reference: (B, D, h, w), from which basis and range are taken.
        others: further features of the same shape.

    Returns:
        For each of the features (B, h, w, 3) in [0, 1].
    """
    rows = reference.permute(0, 2, 3, 1).flatten(0, 2).float()
    mean = rows.mean(0)
    _, _, basis = torch.linalg.svd(rows - mean, full_matrices=False)
    basis = basis[:3] * basis[:3].sum(1, keepdim=True).sign()  # the sign of a component is arbitrary: fix it
    projected = [(f.permute(0, 2, 3, 1).float() - mean) @ basis.T for f in (reference, *others)]
    low, high = (projected[0].flatten(0, 2).quantile(q, 0) for q in (0.02, 0.98))
    return tuple(((p - low) / (high - low).clamp(min=1e-8)).clamp(0, 1) for p in projected)


@torch.no_grad()
def prediction_figure(model: HGKDForPreTraining, pixel_values: Tensor, bool_masked_pos: Tensor) -> Figure:
    """Image | what the student sees | teacher's features | student's prediction | error, a row an image.

    Args:
        model: with its teacher attached.
        pixel_values: (B, 3, H, W), normalised for the student.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.
    """
    from matplotlib.figure import Figure

    was_training = model.training
    output = model.eval()(pixel_values, bool_masked_pos)
    model.train(was_training)
    target, prediction = output.teacher_features[-1], output.feature_predictions[-1]
    target = torch.nn.functional.layer_norm(target.permute(0, 2, 3, 1), target.shape[1:2]).permute(0, 3, 1, 2)
    colours = pca_colours(target, prediction)
    mean, std = (
        pixel_values.new_tensor(v).view(1, 3, 1, 1) for v in (model.config.image_mean, model.config.image_std)
    )
    images = (pixel_values * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    hidden = expand_mask(bool_masked_pos, tuple(pixel_values.shape[-2:]))[..., None]
    seen = torch.where(hidden, 0.75, images)
    error = (prediction - target).square().mean(1)
    columns = {
        "image": images,
        "what the student sees": seen,
        "teacher's features": colours[0],
        "student's prediction": colours[1],
        "squared error": error,
    }
    figure = Figure(figsize=(2 * len(columns), 2 * len(images) + 0.4), layout="constrained")
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for row in axes:
        for axis in row:
            axis.set_axis_off()
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, picture in enumerate(pictures):
            limits = {"vmin": 0, "vmax": float(error.max()), "cmap": "magma"} if picture.dim() == 2 else {}
            axes[row, column].imshow(picture.float().cpu().numpy(), **limits)
    return figure


def curves_figure(runs: dict[str, str | Path]) -> Figure:
    """Loss and kNN accuracy over the steps, a line a run.

    Args:
        runs: the folder of each run by its name; each holds a `metrics.jsonl`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, folder in runs.items():
        entries = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
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
