"""A student's reconstruction agrees with that of a moving average of the student."""

from __future__ import annotations

from torch import Tensor

from ..sparse.masking import expand_mask
from .positions import mean_of_chosen


def reconstruction_consistency_loss(prediction: Tensor, average_prediction: Tensor, bool_masked_pos: Tensor) -> Tensor:
    """Mean over hidden cells and their values of (prediction - average_prediction)^2.

    Source: the reconstruction-consistency term of RC-MAE (2210.02077), with cells as patches.

    Args:
        prediction: (B, C, H, W), the student's.
        average_prediction: (B, C, H, W), of the moving average, which saw the same cells; constant.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.

    Raises:
        ValueError: shapes do not fit, or no cell is hidden.
    """
    if prediction.shape != average_prediction.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and average_prediction {tuple(average_prediction.shape)} differ in "
            "shape."
        )
    squared = (prediction.float() - average_prediction.detach().float()).square().mean(1)
    hidden = expand_mask(bool_masked_pos, tuple(squared.shape[1:]))
    return mean_of_chosen(squared, hidden, "no cell is hidden, so none is reconstructed: raise mask_ratio.")
