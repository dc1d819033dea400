"""The quickstart's pictures: what a masked student infers, how features group the digits, how the runs went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data import DistillationDataset, ImageLoader, ImageTransform, load_images
from ..evaluation import Features
from ..methods.hgkd.modeling import HGKDForPreTraining
from ..teachers import PatchTeacher
from ..visualize import columns_figure, curves_figure, prediction_columns
from ..visualize.figure import new_figure
from .data import SIZE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Captions by file, in the order of the page.
PICTURES = {
    "prediction.png": "What the teacher sees at each place, and what students predict: from the whole image, and "
    "where cells are hidden (grey) from the others. Colours: the teacher's first three principal components.",
    "embedding.png": "Frozen features of 500 test images in two dimensions (t-SNE), coloured by digit.",
    "curves.png": "Loss of each training, and kNN accuracy on 500 test images before and after it.",
}
IMAGES = 5  # that are predicted
POINTS = 500  # of an embedding


def draw(
    folder: Path,
    images: Path,
    whole: Path,
    masked: Path,
    teacher: Path,
    features: Mapping[str, Features],
    runs: Mapping[str, Path],
) -> dict[str, Path]:
    """Draw all pictures.

    Args:
        folder: where the files go.
        images: the folder of images, whose test split is drawn.
        whole, masked: runs of students that see the whole image, and its visible cells.
        teacher: theirs.
        features: of the test split, by model.
        runs: folders of trainings by name.

    Returns:
        The files by caption.
    """
    figures = predictions_figure(images, whole, masked, teacher), embeddings_figure(features), curves_figure(runs)
    for name, figure in zip(PICTURES, figures):
        figure.savefig(folder / name, dpi=80)
    return {caption: folder / name for name, caption in PICTURES.items()}


def predictions_figure(images: Path, whole: Path, masked: Path, teacher: Path) -> Figure:
    """Test images and the teacher's features; what a student predicts of the whole image, and another of a part."""
    source = load_images(images, split="test", max_samples=IMAGES)
    columns = {}
    for run, titles in (
        (whole, {"image": "image", "teacher's features": "teacher", "student's prediction": "H-GKD"}),
        (masked, {"what the student sees": "cells hidden", "student's prediction": "H-GKD, from these cells"}),
    ):
        model = HGKDForPreTraining.from_pretrained(run)
        config = model.config
        model.attach_teacher(PatchTeacher.from_pretrained(teacher, layers=config.teacher_layers, image_size=SIZE))
        transform = ImageTransform(config.image_size, train=False)
        masks = {"cell_grid": config.cell_grid, "mask_ratio": config.mask_ratio}
        dataset = DistillationDataset(source, transform, seed=0, **masks)
        (batch,) = ImageLoader(dataset, batch_size=IMAGES)
        found = prediction_columns(model, batch["pixel_values"], batch["bool_masked_pos"])
        columns |= {title: found[name] for name, title in titles.items()}
    return columns_figure(columns)


def embeddings_figure(features: Mapping[str, Features]) -> Figure:
    """Features of each model in two dimensions (t-SNE), a panel each."""
    from sklearn.manifold import TSNE

    figure = new_figure(3.2 * len(features), 3.4)
    axes = figure.subplots(1, len(features), squeeze=False)[0]
    for axis, (name, found) in zip(axes, features.items()):
        rows = torch.nn.functional.normalize(found.features[:POINTS], dim=1)
        perplexity = min(30, (len(rows) - 1) / 3)
        points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(rows.numpy())
        drawn = axis.scatter(*points.T, c=found.labels[: len(points)], cmap="tab10", s=7, vmin=-0.5, vmax=9.5)
        axis.set(title=name, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[-1], ticks=range(10))
    return figure
