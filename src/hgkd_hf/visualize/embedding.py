"""Pictures of a set of images by their features: who is near whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..evaluation.features import Features
from .figure import new_figure
from .pictures import nearest, neighbours_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IN_LEGEND = 20


def own_neighbours_figure(
    features: Features, picture: Callable[[int], Tensor], queries: int = 6, count: int = 6
) -> Figure:
    """Some images of a set, and for each those of the same set that are most alike, itself left out.

    Args:
        features: of the set.
        picture: the image of a row of its dataset, (H, W, 3) in [0, 1].
        queries: rows of the picture.
        count: neighbours in each.
    """
    chosen = features.spread(queries)
    asked = features.select(chosen)
    found = nearest(features, asked, count + 1)
    others = found != chosen[:, None]
    others[:, -1] &= ~others.all(1)  # where several are equal, the image itself may not be among the nearest
    neighbours = found[others].view(len(chosen), -1)
    pictures = {index: picture(features.row(index)) for index in neighbours.unique().tolist()}
    shown = [picture(row) for row in asked.rows.tolist()]
    return neighbours_figure(features, asked, pictures, shown, neighbours)


def embedding_figure(points: Tensor, method: str, labels: Sequence[str | int | None] | None = None) -> Figure:
    """A point an image, coloured by its label.

    Args:
        points: (N, 2).
        method: how they were made.
        labels: of each image.
    """
    figure = new_figure(7, 6)
    from matplotlib import colormaps

    axis = figure.subplots()
    kinds = [None] if labels is None else sorted(set(labels), key=lambda label: (label is None, label))
    # tab10 repeats after ten classes, where neighbouring colours of a wheel can still be told apart.
    colours = colormaps["tab10"].colors if len(kinds) <= 10 else colormaps["hsv"](torch.linspace(0, 0.9, len(kinds)))
    for colour, kind in zip(colours, kinds):
        chosen = points if labels is None else points[torch.tensor([label == kind for label in labels])]
        name = "no label" if kind is None else str(kind)
        axis.scatter(*chosen.T, s=12, color=colour, label=name, linewidths=0)
    if labels is not None and len(kinds) <= MOST_IN_LEGEND:
        axis.legend(fontsize=8)
    axis.set(title=f"{len(points):,} images, {method} of their features", xticks=[], yticks=[])
    return figure
