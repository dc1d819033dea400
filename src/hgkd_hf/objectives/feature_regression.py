"""Regress a teacher's features at hidden positions."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

FeatureLoss = Literal["smooth-l1", "mse", "cosine"]


def feature_regression_loss(
    prediction: Tensor,
    target: Tensor,
    bool_masked_pos: Tensor | None = None,
    loss: FeatureLoss = "smooth-l1",
    beta: float = 2.0,
) -> Tensor:
    """Mean distance of predicted and LayerNorm-normalised target features over the chosen positions.

    With T the target and That = LayerNorm(T) over its channels (no affine, eps 1e-6), position i costs
    `mean_d smoothL1_beta(P_id - That_id)`, `mean_d (P_id - That_id)^2` or `1 - cos(P_i, That_i)`.
    Source: our reading of H-GKD (2309.09571); target normalisation and beta 2 as published for G2SD's generic stage.

    Args:
        prediction: (B, D, h, w), the student's.
        target: (B, D, h, w), the teacher's; no gradient flows into it.
        bool_masked_pos: (B, h, w) bool, True = hidden: only those count. None: all do.
        loss: which distance.
        beta: where smooth-l1 turns from squared to absolute.

    Raises:
        ValueError: shapes differ, no position is hidden, or there is no such loss.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape.")
    prediction = prediction.permute(0, 2, 3, 1).float()
    target = F.layer_norm(target.detach().permute(0, 2, 3, 1).float(), target.shape[1:2], eps=1e-6)
    if bool_masked_pos is not None:
        if bool_masked_pos.shape != prediction.shape[:3]:
            raise ValueError(
                f"bool_masked_pos {tuple(bool_masked_pos.shape)} does not fit features {tuple(prediction.shape[:3])}."
            )
        if not bool_masked_pos.any():
            raise ValueError(
                "no position is hidden, so none can be predicted: raise mask_ratio or take positions='all'."
            )
        prediction, target = prediction[bool_masked_pos], target[bool_masked_pos]
    if loss == "smooth-l1":
        return F.smooth_l1_loss(prediction, target, beta=beta)
    if loss == "mse":
        return F.mse_loss(prediction, target)
    if loss == "cosine":
        return (1 - F.cosine_similarity(prediction, target, dim=-1)).mean()
    raise ValueError(f"loss {loss!r} does not exist: choose one of {', '.join(get_args(FeatureLoss))}.")
