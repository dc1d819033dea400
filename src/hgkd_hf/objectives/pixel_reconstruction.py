"""Reconstruct hidden pixels."""

from __future__ import annotations

from torch import Tensor


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
    if not bool_masked_pos.any():
        raise ValueError("no cell is hidden, so none can be reconstructed: raise mask_ratio.")
    gh, gw = bool_masked_pos.shape[1:]

    def hidden_cells(images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        blocks = images.float().view(batch, channels, gh, height // gh, gw, width // gw)
        return blocks.permute(0, 2, 4, 3, 5, 1).flatten(3)[bool_masked_pos]  # (hidden cells, values of a cell)

    target = hidden_cells(pixel_values)
    target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    return (hidden_cells(prediction) - target).square().mean()
