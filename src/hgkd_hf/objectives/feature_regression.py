"""Regress a teacher's features: how targets are normalised, and the distance."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .choices import FeatureLoss, TargetNormKind
from .positions import mean_of_chosen
from .whitening import Whitening


class TargetNorm(nn.Module):
    """Normalises a teacher's feature map, so that no channel and no teacher's scale decides what is learned.

    With T (B, D, h, w) the map and L = LayerNorm(T) over the channels of each position (no affine, eps 1e-6, as in
    the generic stage of G2SD, arXiv:2302.14771):

    - `"layer-norm"`: L. A few channels of large spread, as most ViTs have, keep most of the loss.
    - `"whiten"`: the standardised channels of L with the directions damped that many of them share, and which keep
      most of the loss otherwise; see `Whitening`.
    - `"standardize"`: each channel of L minus its mean over its standard deviation, over batch and positions, so that
      all channels count alike (compare PHI-S, arXiv:2410.01680). In training the batch's statistics are used, shared
      among processes like any BatchNorm's; in eval mode the running ones, which are buffers of the checkpoint.
    - `"none"`: T.
    """

    def __init__(self, kind: TargetNormKind, channels: int):
        super().__init__()
        self.kind = kind
        if kind == "whiten":
            self.statistics = Whitening(channels)
        if kind == "standardize":
            self.statistics = nn.BatchNorm1d(channels, affine=False, momentum=0.02)

    def forward(self, target: Tensor, bool_positions: Tensor | None = None) -> Tensor:
        """(B, D, h, w) to the same shape in float32; no gradient flows through it.

        Statistics are those of `bool_positions` (B, h, w), the only ones that hold a target; None: all do.
        """
        target = target.detach().float()
        if self.kind == "none":
            return target
        target = F.layer_norm(target.permute(0, 2, 3, 1), target.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        if self.kind == "layer-norm":
            return target
        rows = target.permute(0, 2, 3, 1)
        if bool_positions is None:
            return self.statistics(rows.flatten(0, 2)).view(rows.shape).permute(0, 3, 1, 2)
        normalised = torch.zeros_like(rows)
        normalised[bool_positions] = self.statistics(rows[bool_positions])
        return normalised.permute(0, 3, 1, 2)


def feature_regression_loss(
    prediction: Tensor,
    target: Tensor,
    bool_positions: Tensor | None = None,
    loss: FeatureLoss = "cosine+smooth-l1",
    beta: float = 1.0,
) -> Tensor:
    """Mean distance of predicted and target features over the chosen positions.

    Position i costs `mean_d smoothL1_beta(P_id - T_id)`, `mean_d (P_id - T_id)^2`, `1 - cos(P_i, T_i)`, or the sum of
    the first and the last, which AM-RADIO (arXiv:2312.06709) combines for spatial features.
    Source: our reading of H-GKD (arXiv:2309.09571); smooth-l1 with beta 2 is that of G2SD's generic stage
    (arXiv:2302.14771).

    Args:
        prediction: (B, D, h, w), the student's.
        target: (B, D, h, w), the teacher's, normalised (`TargetNorm`); no gradient flows into it.
        bool_positions: (B, h, w) bool, True = this position counts. None: all do.
        loss: which distance.
        beta: where smooth-l1 turns from squared to absolute.

    Raises:
        ValueError: shapes differ, no position counts, or there is no such loss.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape.")
    prediction, target = (values.permute(0, 2, 3, 1).float() for values in (prediction, target.detach()))
    if bool_positions is not None and bool_positions.shape != prediction.shape[:3]:
        raise ValueError(
            f"bool_positions {tuple(bool_positions.shape)} does not fit features {tuple(prediction.shape[:3])}."
        )
    reduction = "mean" if bool_positions is None else "none"
    terms = {
        "smooth-l1": lambda: F.smooth_l1_loss(prediction, target, reduction=reduction, beta=beta),
        "mse": lambda: F.mse_loss(prediction, target, reduction=reduction),
        "cosine": lambda: 1 - F.cosine_similarity(prediction, target, dim=-1),
    }
    if loss not in get_args(FeatureLoss):
        raise ValueError(f"loss {loss!r} does not exist: choose one of {', '.join(get_args(FeatureLoss))}.")
    if bool_positions is None:
        return sum(terms[name]().mean() for name in loss.split("+"))
    none = "no position is to be predicted: change mask_ratio, or set positions to 'all'."
    distances = (terms[name]() for name in loss.split("+"))
    of_positions = sum(distance.mean(-1) if distance.dim() == 4 else distance for distance in distances)
    return mean_of_chosen(of_positions, bool_positions, none)
