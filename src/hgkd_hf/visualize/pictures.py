"""Pictures of what a student sees, predicts and finds alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..evaluation.features import Features, eval_mode
from ..sparse.masking import expand_mask
from ..students.features import feature_scales
from ..teachers.showing import unnormalize
from .figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

    from ..methods.hgkd.modeling import HGKDForPreTraining

HIDDEN_GREY = 0.75
SAME, OTHER = "#2a9d4a", "#d1495b"  # frames of neighbours of the query's class, and of another
GAP = 0.03  # around a picture, in sides of its square


def pca_colours(reference: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Features as colours: the first three principal components of `reference`, one basis for all.

    Args:
        reference: (B, D, h, w) with D >= 3, from which basis and range are taken.
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


def unnormalise(pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images (B, 3, H, W) as pictures (B, H, W, 3) in [0, 1]."""
    return unnormalize(pixel_values, mean, std).permute(0, 2, 3, 1)


@torch.no_grad()
def prediction_columns(
    model: HGKDForPreTraining, pixel_values: Tensor, bool_masked_pos: Tensor, teacher_features: Tensor | None = None
) -> dict[str, Tensor]:
    """What a student fills in, as pictures by title.

    Of features: teacher's and prediction as colours of one basis, and the squared error of a token. Of pixels: the
    image with its hidden cells filled in; the target of a cell is normalised (SparK, arXiv:2301.03580), so the cell's
    own mean and deviation are put back.

    Args:
        model: with its teacher attached, if it predicts features.
        pixel_values: (B, 3, H, W), normalised for the student.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.
        teacher_features: (B, C, th, tw), what a cached teacher saw in them.

    Returns:
        Pictures (B, h, w, 3) in [0, 1]; of the error (B, h, w).
    """
    with eval_mode(model):
        output = model(pixel_values, bool_masked_pos, teacher_features)
    config = model.config
    images = unnormalise(pixel_values, config.image_mean, config.image_std)
    hidden = expand_mask(bool_masked_pos, tuple(pixel_values.shape[-2:]))[..., None]
    columns = {"image": images, "what the student sees": torch.where(hidden, HIDDEN_GREY, images)}
    if output.feature_predictions is not None:
        target, prediction = output.feature_targets[-1].float(), output.feature_predictions[-1].float()
        colours = pca_colours(target, prediction)
        columns |= {"teacher's features": colours[0], "student's prediction": colours[1]}
        columns["squared error"] = (prediction - target).square().mean(1)
    if output.pixel_predictions is not None:
        filled = _cell_statistics_restored(output.pixel_predictions.float(), pixel_values, bool_masked_pos.shape[1:])
        filled = unnormalise(filled, config.image_mean, config.image_std)
        columns["filled in"] = torch.where(hidden, filled, images)
    return columns


def _cell_statistics_restored(prediction: Tensor, pixel_values: Tensor, grid: Sequence[int]) -> Tensor:
    """Give each cell of `prediction` (B, 3, H, W) the mean and spread of the image's cell."""
    batch, channels, height, width = pixel_values.shape
    rows, columns = grid
    shape = batch, channels, rows, height // rows, columns, width // columns
    cells = pixel_values.view(shape)
    mean = cells.mean((1, 3, 5), keepdim=True)
    spread = (cells.var((1, 3, 5), keepdim=True) + 1e-6).sqrt()
    return (prediction.reshape(shape) * spread + mean).view_as(pixel_values)


def prediction_figure(
    model: HGKDForPreTraining,
    pixel_values: Tensor,
    bool_masked_pos: Tensor,
    teacher_features: Tensor | None = None,
    **others: Tensor,
) -> Figure:
    """Image | what the student sees | teacher's features | student's prediction | error, a row an image.

    See `prediction_columns`; a student that predicts pixels has the filled image instead, or too. What else a batch of
    samples holds (`others`) is not drawn.
    """
    return columns_figure(prediction_columns(model, pixel_values, bool_masked_pos, teacher_features))


@torch.no_grad()
def feature_columns(
    encoder: PreTrainedModel, pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """The image and the feature maps of any stock CNN as colours, finest first, each with colours of its own.

    Args:
        encoder: a stock model with feature maps at several scales.
        pixel_values: (B, 3, H, W), normalised with `mean` and `std`.
        mean, std: of the channels.

    Returns:
        Pictures (B, h, w, 3) in [0, 1] by title.

    Raises:
        ValueError: the model has no such maps.
    """
    scales = feature_scales(encoder.config)
    with eval_mode(encoder):
        states = encoder(pixel_values, output_hidden_states=True).hidden_states
    columns = {"image": unnormalise(pixel_values, mean, std)}
    for scale in scales:
        columns[f"{scale.channels} channels, stride {scale.stride}"] = pca_colours(states[scale.index])[0]
    return columns


def features_figure(
    encoder: PreTrainedModel, pixel_values: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """Image | the student's feature maps, a row an image: see `feature_columns`."""
    return columns_figure(feature_columns(encoder, pixel_values, mean, std))


def nearest(bank: Features, queries: Features, count: int) -> Tensor:
    """The `count` rows of `bank` most alike each query by cosine, the most alike first: (queries, count) indices."""
    asked, searched = (torch.nn.functional.normalize(features.features, dim=1) for features in (queries, bank))
    return (asked @ searched.T).topk(min(count, len(bank)), dim=1).indices


def neighbours_figure(
    bank: Features,
    queries: Features,
    bank_images: Mapping[int, Tensor],
    query_images: Sequence[Tensor],
    neighbours: Tensor,
) -> Figure:
    """Each query and the images whose features are most alike; a green frame has the query's class, a red one not.

    Args:
        bank, queries: features; frames are drawn where both have labels.
        bank_images: (H, W, 3) in [0, 1] by row of the bank, at least of the `neighbours`.
        query_images: of the queries, (H, W, 3) each.
        neighbours: rows of the bank, (queries, count), from `nearest`.
    """
    pictures = [[query] for query in query_images]
    for row, indices in zip(pictures, neighbours.tolist()):
        row += [bank_images[index] for index in indices]
    frames = {}
    if bank.labels is not None and queries.labels is not None:
        same = bank.labels[neighbours] == queries.labels[:, None]
        frames = {(row, 1 + column): SAME if same[row, column] else OTHER for row, column in np.ndindex(*same.shape)}
    return tiles_figure(pictures, ("image", "most alike"), 1.35, frames)


def columns_figure(columns: Mapping[str, Tensor]) -> Figure:
    """Pictures in columns under their titles, a row an image; what has no colours is drawn as heat."""
    return tiles_figure(list(zip(*columns.values())), list(columns), 2, heat_ends=[x.max() for x in columns.values()])


def tiles_figure(
    rows: Sequence[Sequence[Tensor]],
    titles: Sequence[str],
    inches: float,
    frames: Mapping[tuple[int, int], str] | None = None,
    heat_ends: Sequence[Tensor] | None = None,
) -> Figure:
    """Pictures of any size centred in squares of one axis: an axis of its own takes longer to draw than a picture.

    Args:
        rows: (h, w, 3) in [0, 1] each; (h, w) is drawn as heat.
        titles: of the first columns.
        inches: the side of a square.
        frames: colours by (row, column).
        heat_ends: what is brightest in each column of heat.
    """
    figure = new_figure(inches * len(rows[0]), inches * len(rows) + 0.3)
    axis = figure.subplots()
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            heat = {"cmap": "magma", "vmin": 0, "vmax": float(heat_ends[column])} if picture.dim() == 2 else {}
            down, right = (np.array(picture.shape[:2]) / max(picture.shape[:2]) * (0.5 - GAP)).tolist()
            place = (column + 0.5 - right, column + 0.5 + right, row + 0.5 + down, row + 0.5 - down)
            axis.imshow(picture.float().cpu().numpy(), interpolation="nearest", extent=place, **heat)
    for (row, column), colour in (frames or {}).items():
        (left, right), (top, bottom) = ((start + GAP, start + 1 - GAP) for start in (column, row))
        outline = [left, right, right, left, left], [top, top, bottom, bottom, top]
        axis.plot(*outline, color=colour, linewidth=2.5, solid_joinstyle="miter")
    axis.set(xlim=(0, len(rows[0])), ylim=(len(rows), 0), yticks=[])
    axis.set_xticks([column + 0.5 for column in range(len(titles))], titles, fontsize=9)
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    return figure
