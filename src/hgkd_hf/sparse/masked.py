"""Backend "masked": the dense operation, then the mask. The readable reference that every backend must equal.

It computes what SparK's sparse encoder computes (2301.03580, section 3.2): convolutions and pooling run on whole maps
whose hidden positions are zero, their outputs are zeroed there again, and BatchNorm sees visible positions only.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..masking import VisibleCells
from .norm import batch_norm

Dense = Callable[[Tensor], Tensor]


class MaskedBackend:
    """Features are dense maps (B, C, H, W), zero at hidden positions.

    Every operation takes the layer, the layer's own dense forward, and its input.
    """

    def __init__(self, cells: VisibleCells):
        self.cells = cells
        self._visible: dict[tuple[int, int], Tensor] = {}

    def visible(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) bool: the visible positions of map `x`."""
        size = tuple(x.shape[-2:])
        if size not in self._visible:
            self._visible[size] = self.cells.visible(size)
        return self._visible[size]

    def enter(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the network's first layer takes."""
        return pixel_values * self.visible(pixel_values)

    def leave(self, x: Tensor) -> Tensor:
        """A feature of the network to a dense map (B, C, H, W), zero at hidden positions."""
        return x

    def conv2d(self, layer: nn.Conv2d, dense: Dense, x: Tensor) -> Tensor:
        """Convolution: hidden and outside positions count as zeros."""
        y = dense(x)
        return y * self.visible(y)

    def max_pool2d(self, layer: nn.MaxPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Maximum over a window: hidden positions count as zeros, those outside the image not at all."""
        y = dense(x)
        return y * self.visible(y)

    def batch_norm(self, layer: nn.BatchNorm2d, dense: Dense, x: Tensor) -> Tensor:
        """BatchNorm with the statistics of visible positions only."""
        visible = self.visible(x).squeeze(1)
        rows = batch_norm(layer, x.permute(0, 2, 3, 1)[visible])
        y = rows.new_zeros(x.shape[0], *x.shape[2:], x.shape[1])
        y[visible] = rows
        return y.permute(0, 3, 1, 2)

    def global_avg_pool2d(self, layer: nn.AdaptiveAvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over each image's visible positions: (B, C, 1, 1)."""
        return x.sum((2, 3), keepdim=True) / self.visible(x).sum((2, 3), keepdim=True)
