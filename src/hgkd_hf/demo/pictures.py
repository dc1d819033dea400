"""The quickstart's pictures: what a masked student infers, how features group the digits, how the runs went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..data import DistillationDataset, ImageTransform, collate, load_images
from ..evaluation import Features
from ..methods.hgkd.modeling import HGKDForPreTraining
from ..teachers import PatchTeacher
from ..visualize import curves_figure, prediction_figure
from .data import SIZE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Captions by file, in the order of the page.
PICTURES = {
    "prediction.png": "Where cells are hidden (grey), the student infers what the teacher sees there. Features as "
    "colours: the first three principal components of the teacher's.",
    "embedding.png": "Frozen features of 500 test images in two dimensions (t-SNE), coloured by digit.",
    "curves.png": "Loss of each training, and kNN accuracy on 500 test images before and after it.",
}
IMAGES = 5  # that are predicted
POINTS = 500  # of an embedding


def draw(
    folder: Path, images: Path, masked: Path, teacher: Path, features: Mapping[str, Features], runs: Mapping[str, Path]
) -> dict[str, Path]:
    """Draw all pictures.

    Args:
        folder: where the files go.
        images: the folder of images, whose test split is drawn.
        masked: the run of a masked student.
        teacher: its teacher.
        features: of the test split, by model.
        runs: folders of trainings by name.

    Returns:
        The files by caption.
    """
    figures = inferred(images, masked, teacher), embeddings_figure(features), curves_figure(runs)
    for name, figure in zip(PICTURES, figures):
        figure.savefig(folder / name, dpi=80)
    return {caption: folder / name for name, caption in PICTURES.items()}


def inferred(images: Path, masked: Path, teacher: Path) -> Figure:
    """Test images, what a masked student sees of them, and its prediction beside the teacher's features."""
    model = HGKDForPreTraining.from_pretrained(masked)
    config = model.config
    model.attach_teacher(PatchTeacher.from_pretrained(teacher, layers=config.teacher_layers, image_size=SIZE))
    transform = ImageTransform(config.image_size, train=False)
    source = load_images(images, split="test", max_samples=IMAGES)
    dataset = DistillationDataset(source, transform, seed=0, cell_grid=config.cell_grid, mask_ratio=config.mask_ratio)
    batch = collate([dataset[index] for index in range(IMAGES)])
    return prediction_figure(model, batch["pixel_values"], batch["bool_masked_pos"])


def embeddings_figure(features: Mapping[str, Features]) -> Figure:
    """Features of each model in two dimensions (t-SNE), a panel each."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(3.2 * len(features), 3.4), layout="constrained")
    axes = figure.subplots(1, len(features), squeeze=False)[0]
    for axis, (name, found) in zip(axes, features.items()):
        rows = torch.nn.functional.normalize(found.features[:POINTS], dim=1)
        perplexity = min(30, (len(rows) - 1) / 3)
        points = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(rows.numpy())
        drawn = axis.scatter(*points.T, c=found.labels[: len(points)], cmap="tab10", s=7, vmin=-0.5, vmax=9.5)
        axis.set(title=name, xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes[-1], ticks=range(10))
    return figure
