"""The features of a set of images as a table, and as points of a plane."""

from __future__ import annotations

import importlib.util

import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import ImageSource
from .features import Features

UMAP_NEIGHBOURS = 15
# With fewer images than this, UMAP's graph of neighbours says nothing, and its spectral start fails.
LEAST_FOR_UMAP = 2 * UMAP_NEIGHBOURS


def feature_table(features: Features, source: ImageSource) -> pa.Table:
    """A row an image: its `row` in the dataset, its `file`, its `label` if there are labels, and its `features`.

    Args:
        features: (N, D), of rows of the source.
        source: the split.

    Returns:
        `row` int64; `file` string, null where the dataset does not name it; `label` string where classes have names,
        else int64; `features` fixed-size list of D float32.
    """
    rows = [features.row(index) for index in range(len(features))]
    values = pa.array(features.features.contiguous().numpy().ravel(), pa.float32())
    columns = {"row": pa.array(rows, pa.int64())}
    columns["file"] = pa.array([source.file_name(source.dataset[row]) for row in rows], pa.string())
    if source.label_column is not None:
        columns["label"] = pa.array(row_labels(source, rows))
    columns["features"] = pa.FixedSizeListArray.from_arrays(values, features.features.shape[1])
    return pa.table(columns)


def row_labels(source: ImageSource, rows: list[int]) -> list[str | int | None]:
    """The class of each row: its name where classes have names; None where a row has no label."""
    labels = [source.to_class(label) for label in source.dataset.select(rows)[source.label_column]]
    if source.class_names is None:
        return labels
    return [None if label is None or label < 0 else source.class_names[label] for label in labels]


def project(features: Tensor, seed: int = 0) -> tuple[Tensor, str]:
    """Points of a plane for features, and the name of the method that made them.

    UMAP (McInnes et al. 2018, arXiv:1802.03426) with cosine distances where umap-learn is installed and there are
    enough images, else the first two principal components of the features, each scaled to length 1.

    Args:
        features: (N, D), D at least 2.
        seed: of UMAP; one seed, one result.

    Returns:
        (N, 2) float32, and "UMAP" or "PCA".
    """
    if len(features) >= LEAST_FOR_UMAP and importlib.util.find_spec("umap") is not None:
        from umap import UMAP

        settings = {"n_neighbors": UMAP_NEIGHBOURS, "metric": "cosine", "random_state": seed, "n_jobs": 1}
        return torch.from_numpy(UMAP(**settings).fit_transform(features.numpy())).float(), "UMAP"
    rows = F.normalize(features.double(), dim=1)
    rows = rows - rows.mean(0)
    _, axes = torch.linalg.eigh(rows.T @ rows)  # ascending
    axes = axes[:, [-1, -2]]
    axes = axes * axes.sum(0).sign()  # the sign of a component is arbitrary: fix it
    return (rows @ axes).float(), "PCA"
