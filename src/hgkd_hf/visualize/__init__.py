"""Pictures and curves of what a student learned. Needs matplotlib (extra `demo`)."""

from .curves import curves_figure
from .embedding import embedding_figure, own_neighbours_figure
from .pictures import (
    columns_figure,
    feature_columns,
    features_figure,
    nearest,
    neighbours_figure,
    pca_colours,
    prediction_columns,
    prediction_figure,
    unnormalise,
)

__all__ = [
    "columns_figure",
    "curves_figure",
    "embedding_figure",
    "feature_columns",
    "features_figure",
    "nearest",
    "neighbours_figure",
    "own_neighbours_figure",
    "pca_colours",
    "prediction_columns",
    "prediction_figure",
    "unnormalise",
]
