"""Backend "cells": only visible cells are computed.

A feature is (V, C, b, b): one row for every visible cell of the batch, channels last in memory, b = 8, 4, 2, 1 pixels
at the stages of a stride-32 network with 32-pixel cells. Pointwise operations, BatchNorm and residual sums are then
the stock ones and exact over visible positions. A layer whose kernel is wider than a pixel looks beyond its cell:
it reads neighbouring visible cells through index tables, and zeros where the neighbour is hidden or outside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..masking import VisibleCells
from .masked import Dense
from .norm import batch_norm

# Below this output block side a convolution runs as one matrix product per kernel tap, from it on as a convolution of
# windows with a halo. Forward + backward, speed-up over the dense convolution (2 cores, float32 | bf16, 20 of 49
# cells visible, equal FLOPs at every stage; benchmarks/sparse_encoder.py --kernels repeats it):
#   block    8            4            2            1
#   halo     1.72 | 1.43  1.78 | 1.50  1.29 | 0.94  0.60 | 0.41
#   taps     1.40 | 1.21  1.94 | 1.60  2.57 | 2.14  4.02 | 2.95
HALO_BLOCK = 8


@dataclass(frozen=True)
class Geometry:
    """What of a sliding window decides its index tables: block sides in pixels, then (vertical, horizontal) pairs."""

    block: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def out_block(self) -> tuple[int, int]:
        return self.block[0] // self.stride[0], self.block[1] // self.stride[1]


def pixels(x: Tensor) -> Tensor:
    """Rows (V, C, b, b) as (V*b*b, C), a view when they are channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def new_rows(like: Tensor, channels: int, block: tuple[int, int]) -> Tensor:
    """Uninitialised rows (V, channels, *block), channels last."""
    return like.new_empty(like.shape[0], *block, channels).permute(0, 3, 1, 2)


class CellsBackend:
    """Features are rows (V, C, b, b). The same operations as `MaskedBackend`, with the same results at visible cells.

    One object serves one forward: it keeps the index tables of the mask, one for each geometry that occurs.
    """

    def __init__(self, cells: VisibleCells):
        self.cells = cells
        self._windows: dict[Geometry, tuple[Tensor, Tensor, Tensor]] = {}
        self._taps: dict[Geometry, list[tuple[Tensor, Tensor] | None]] = {}

    def enter(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) to rows (V, 3, H/gh, W/gw)."""
        return self.cells.gather(pixel_values)

    def leave(self, x: Tensor) -> Tensor:
        """Rows (V, C, b, b) to a dense map (B, C, gh*b, gw*b), zero at hidden positions."""
        return self.cells.scatter(x)

    def conv2d(self, layer: nn.Conv2d, dense: Dense, x: Tensor) -> Tensor:
        """Convolution: hidden and outside positions count as zeros."""
        shape = Geometry(tuple(x.shape[-2:]), layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        if layer.kernel_size == (1, 1) and layer.groups == 1:
            # A product over rows: a convolution library handles thousands of tiny images badly.
            x = x[:, :, :: layer.stride[0], :: layer.stride[1]]
            y = F.linear(pixels(x), layer.weight.flatten(1), layer.bias)
            return y.view(x.shape[0], *x.shape[-2:], -1).permute(0, 3, 1, 2)
        if min(shape.out_block) >= HALO_BLOCK or layer.groups > 1:
            window = self.window(x, shape)
            return F.conv2d(window, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
        device = x.device.type  # a custom Function is not autocast by itself
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        y = TapConvolution.apply(x.to(dtype), layer.weight.to(dtype), self.taps(shape), shape.out_block)
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)

    def max_pool2d(self, layer: nn.MaxPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Maximum over a window: hidden positions count as zeros, those outside the image not at all."""
        kernel, stride, padding, dilation = (
            (value, value) if isinstance(value, int) else value
            for value in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        )
        window = self.window(x, Geometry(tuple(x.shape[-2:]), kernel, stride, padding, dilation), float("-inf"))
        return F.max_pool2d(window, kernel, stride, 0, dilation)

    def batch_norm(self, layer: nn.BatchNorm2d, dense: Dense, x: Tensor) -> Tensor:
        """BatchNorm; the rows are the visible positions."""
        if x.shape[-2:] != (1, 1):
            return batch_norm(layer, x)
        # One pixel a cell: the strides of (V, C, 1, 1) look like NCHW, whose backward is ten times slower here.
        return batch_norm(layer, x[:, :, 0, 0])[:, :, None, None]

    def global_avg_pool2d(self, layer: nn.AdaptiveAvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over each image's visible positions, repeated for its cells: (V, C, 1, 1)."""
        image = self.cells.image_index
        means = x.new_zeros(self.cells.batch_size, x.shape[1]).index_add(0, image, x.mean((2, 3)))
        means = means / self.cells.cells_per_image[:, None]
        return means.index_select(0, image)[:, :, None, None]

    def window(self, x: Tensor, shape: Geometry, outside: float = 0.0) -> Tensor:
        """Rows (V, C, b, b) enlarged by the halo that `shape` reads: zeros in hidden cells, `outside` off the image."""
        if shape not in self._windows:
            before_after = [
                (padding, dilation * (kernel - 1) - padding - (stride - 1))
                for kernel, stride, padding, dilation in zip(shape.kernel, shape.stride, shape.padding, shape.dilation)
            ]
            size = tuple(block + sum(halo) for block, halo in zip(shape.block, before_after))
            index, state = self.cells.neighbours(shape.block, before_after[0][0], before_after[1][0], size)
            self._windows[shape] = index, *((state.flatten() == kind).nonzero()[:, 0] for kind in (1, 2))
        index, hidden, off = self._windows[shape]
        rows = pixels(x).index_select(0, index.flatten())
        rows = rows.index_fill_(0, hidden, 0).index_fill_(0, off, outside)
        return rows.view(*index.shape, -1).permute(0, 3, 1, 2)

    def taps(self, shape: Geometry) -> list[tuple[Tensor, Tensor] | None]:
        """For each kernel tap, row-major: which (output pixel, input pixel) pairs of rows it joins; None = all, in order."""
        if shape not in self._taps:
            taps = []
            for ky in range(shape.kernel[0]):
                for kx in range(shape.kernel[1]):
                    top = shape.padding[0] - ky * shape.dilation[0]
                    left = shape.padding[1] - kx * shape.dilation[1]
                    index, state = self.cells.neighbours(shape.block, top, left, shape.out_block, shape.stride)
                    outputs = (state.flatten() == 0).nonzero()[:, 0]
                    everywhere = shape.stride == (1, 1) and top == left == 0
                    taps.append(None if everywhere else (outputs, index.flatten()[outputs]))
            self._taps[shape] = taps
        return self._taps[shape]


class TapConvolution(torch.autograd.Function):
    """A convolution as one matrix product for each kernel tap, over the pairs of pixels that exist.

    Its forward and backward cost exactly the visible part; nothing but input and weight is kept for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, taps: list[tuple[Tensor, Tensor] | None], out_block) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.taps = taps
        y = new_rows(x, weight.shape[0], out_block)
        inputs, outputs = pixels(x), pixels(y)
        first = taps.index(None) if None in taps else None
        if first is None:
            outputs.zero_()
        else:
            torch.mm(inputs, weight.flatten(2)[:, :, first].t(), out=outputs)
        for tap, pairs in enumerate(taps):
            if pairs is not None:
                to, origin = pairs
                outputs.index_add_(0, to, inputs.index_select(0, origin) @ weight.flatten(2)[:, :, tap].t())
        return y

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        inputs, grads = pixels(x), pixels(grad)
        grad_weight = torch.empty_like(weight)
        grad_x = new_rows(x, x.shape[1], x.shape[2:]).zero_() if ctx.needs_input_grad[0] else None
        for tap, pairs in enumerate(ctx.taps):
            ky, kx = divmod(tap, weight.shape[3])
            tap_grads, tap_inputs = grads, inputs
            if pairs is not None:
                tap_grads, tap_inputs = grads.index_select(0, pairs[0]), inputs.index_select(0, pairs[1])
            torch.mm(tap_grads.t(), tap_inputs, out=grad_weight[:, :, ky, kx])
            if grad_x is None:
                continue
            if pairs is None:
                pixels(grad_x).addmm_(tap_grads, weight[:, :, ky, kx])
            else:
                pixels(grad_x).index_add_(0, pairs[1], tap_grads @ weight[:, :, ky, kx])
        return grad_x, grad_weight, None, None
