"""Reconstruct hidden pixels."""

from __future__ import annotations

from torch import Tensor

from .positions import mean_of_chosen


def pixel_reconstruction_loss(prediction: Tensor, pixel_values: Tensor, bool_masked_pos: Tensor) -> Tensor:
    """Mean squared error on hidden cells, each cell's target normalised by its own mean and deviation.

    Source: SparK (2301.03580), which takes MAE's normalised-pixel target (2111.06377) with cells as patches:
    target = (x - mean) / sqrt(var + 1e-6), the variance unbiased over all values of the cell.

    Args:
        prediction: (B, 3, H, W).
        pixel_values: (B, 3, H, W), the images.
        bool_masked_pos: (B, gh, gw) bool, True = hidden.

    Raises:
        ValueError: shapes do not fit, or no cell is hidden.
    """
    if prediction.shape != pixel_values.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and pixels {tuple(pixel_values.shape)} differ in shape."
        )
    gh, gw = bool_masked_pos.shape[1:]

    def cells(images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, gh, gw, values of a cell)."""
        batch, channels, height, width = images.shape
        blocks = images.float().view(batch, channels, gh, height // gh, gw, width // gw)
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3)

    target = cells(pixel_values)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    of_cells = (cells(prediction) - target).square().mean(-1)
    none = "no cell is hidden, so none can be reconstructed: raise mask_ratio."
    return mean_of_chosen(of_cells, bool_masked_pos, none)
