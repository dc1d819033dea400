"""Backend "masked": the dense operation, then the mask. The readable reference that every backend must equal.

It computes what SparK's sparse encoder computes (2301.03580, section 3.2): convolutions and pooling run on whole maps
whose hidden positions are zero, their outputs are zeroed there again, and BatchNorm sees visible positions only.
Layers that SparK does not have follow the same rule: what works on single positions is masked again, what works on
all positions of an image is given its visible positions only, as if the image had no others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backend import Backend, Dense
from .geometry import check_stride, covers, promise_zero_padding, zero_padding
from .masking import VisibleCells
from .norm import batch_norm


class MaskedBackend(Backend):
    """Features are dense maps (B, C, H, W), zero at hidden positions.

    Every operation takes the layer, the layer's own dense forward, and its input.
    """

    def __init__(self, cells: VisibleCells):
        self.cells = cells
        self.cell_size: tuple[int, int] | None = None  # in pixels; known from `enter` on
        self._visible: dict[tuple[int, int], Tensor] = {}

    def visible(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) bool: the visible positions of map `x`. The only position of a pooled map is visible."""
        size = tuple(x.shape[-2:])
        if size not in self._visible:
            cells = self.cells
            self._visible[size] = (
                cells.visible(size)
                if size != (1, 1)
                else torch.ones(cells.batch_size, 1, 1, 1, dtype=torch.bool, device=cells.device)
            )
        return self._visible[size]

    def enter(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) to what the network's first layer takes."""
        self.cell_size = tuple(side // cells for side, cells in zip(pixel_values.shape[-2:], self.cells.grid))
        return pixel_values * self.visible(pixel_values)

    def leave(self, x: Tensor) -> Tensor:
        """A feature of the network to a dense map (B, C, H, W), zero at hidden positions."""
        return x

    def conv2d(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """A convolution or maximum, whose windows must fit the cells."""
        unpadded = (side - sum(padding) for side, padding in zip(x.shape[-2:], zero_padding(x)))
        if x.shape[-2:] != (1, 1):
            check_stride(layer, tuple(side // cells for side, cells in zip(unpadded, self.cells.grid)), self.cell_size)
        y = dense(x)
        return y * self.visible(y)

    max_pool2d = conv2d

    def avg_pool2d(self, layer: nn.AvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over a window: hidden positions count as zeros; a window over the whole map is a global mean."""
        if covers(layer, tuple(x.shape[-2:])):
            return self.global_avg_pool2d(layer, dense, x)
        return self.conv2d(layer, dense, x)

    def zero_pad2d(self, layer: nn.ConstantPad2d, dense: Dense, x: Tensor) -> Tensor:
        """Zeros around the image, for the convolution or pooling that follows."""
        return promise_zero_padding(layer, dense(x))

    def batch_norm(self, layer: nn.BatchNorm2d, dense: Dense, x: Tensor) -> Tensor:
        """BatchNorm with the statistics of visible positions only."""
        visible = self.visible(x)[:, 0]
        return self._put(batch_norm(layer, x.permute(0, 2, 3, 1)[visible]), visible).permute(0, 3, 1, 2)

    def group_norm(self, layer: nn.GroupNorm, dense: Dense, x: Tensor) -> Tensor:
        """The layer on a map (1, C, n, 1) of each image's n visible positions."""
        visible = self.visible(x)[:, 0]
        images = [image[:, where] for image, where in zip(x, visible)]
        rows = torch.cat([dense(image[None, :, :, None])[0, :, :, 0].t() for image in images])
        return self._put(rows, visible).permute(0, 3, 1, 2)

    def global_response_norm(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """The layer on a map of each image's n visible positions, (1, n, 1, C) or (1, C, n, 1) as it takes them."""
        if not layer.channels_last:
            return self.group_norm(layer, dense, x)
        visible = self.visible(x.permute(0, 3, 1, 2))[:, 0]
        images = [image[where] for image, where in zip(x, visible)]
        return self._put(torch.cat([dense(image[None, :, None])[0, :, 0] for image in images]), visible)

    @staticmethod
    def _put(rows: Tensor, visible: Tensor) -> Tensor:
        """Rows (n, C) at the n positions that are true in `visible` (B, H, W), zeros elsewhere: (B, H, W, C)."""
        y = rows.new_zeros(*visible.shape, rows.shape[1])
        y[visible] = rows
        return y

    def global_avg_pool2d(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Mean over each image's visible positions: (B, C, 1, 1)."""
        return x.sum((2, 3), keepdim=True) / self.visible(x).sum((2, 3), keepdim=True)

    def squeeze_excitation(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Channels times a gate that is a function of their means over each image's visible positions."""
        return x * layer.excite(self.global_avg_pool2d(layer, dense, x))

    def pointwise(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """A layer on single positions with f(0) != 0. What is not a map holds one vector for each image."""
        y = dense(x)
        if y.dim() != 4:
            return y
        if layer.channels_last:
            return y * self.visible(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y * self.visible(y)

    def drop(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Stochastic depth or channel dropout: drawn for each image."""
        return dense(x)
