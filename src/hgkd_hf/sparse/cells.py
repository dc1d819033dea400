"""Backend "cells": only visible cells are computed.

A feature is (V, C, b, b): one row for every visible cell of the batch, channels last in memory, b = 8, 4, 2, 1 pixels
at the stages of a stride-32 network with 32-pixel cells. Pointwise operations, BatchNorm and residual sums are then
the stock ones and exact over visible positions. A layer whose kernel is wider than a pixel looks beyond its cell:
it reads neighbouring visible cells through index tables, and zeros where the neighbour is hidden or outside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..masking import VisibleCells
from .geometry import (
    check_stride,
    checked_padding_before,
    covers,
    pads_with_zeros,
    pair,
    promise_zero_padding,
    zero_padding,
)
from .masked import Dense
from .norm import batch_norm

# From this output block side on, a convolution of stride 1 runs as one convolution of windows with a halo, below it as
# one matrix product per kernel tap; a 1x1 convolution in float32 as one of a tall image, below it as a product over
# rows. Forward + backward, speed-up over the dense convolution (benchmarks/sparse_encoder.py --kernels; 2 cores with
# AVX-512, float32 | bf16, 20 of 49 cells visible, 64, 128, 256, 512 channels: equal FLOPs at every block):
#   block                8            4            2            1
#   3x3, convolution     1.95 | 1.36  1.59 | 1.44  1.33 | 1.29  0.78 | 0.88
#   3x3, products        0.86 | 0.68  1.35 | 0.97  1.88 | 1.47  2.57 | 2.27
CONVOLUTION_BLOCK = 4

# From this block side on, in float32, a library's own gradient of the weight beats one product of all columns.
WEIGHT_GRADIENT_BLOCK = 8

# With fewer channels than this (the image, at the stem) an index for every pixel of a window costs more than they do.
FEW_CHANNELS = 8

# Grouped and depthwise convolutions run as windows with a halo while a window is at most this many times as wide as
# its block, and otherwise on whole maps with zeros in the hidden cells, the only operation here that does not get
# cheaper with the mask. The same measurement, whole map without mask = 1 (float32 | bf16, one thread):
#   block                       8            4            2            1
#   depthwise 7x7, halo         1.59 | 1.74  0.62 | 0.85  0.26 | 0.40  0.11 | 0.29
#   depthwise 7x7, whole maps   0.86 | 0.95  0.87 | 0.95  0.90 | 0.96  0.93 | 1.00
#   depthwise 3x3, halo         1.47 | 1.58  1.09 | 1.34  0.58 | 0.79  0.37 | 0.48
#   depthwise 3x3, whole maps   0.53 | 0.64  0.62 | 0.80  0.60 | 0.81  0.88 | 0.96
#   3x3 in groups of 16, halo   2.15 | 1.77  1.67 | 1.14  1.01 | 0.82  0.52 | 0.48
#   the same, whole maps        0.86 | 0.99  0.83 | 0.82  0.87 | 0.94  0.96 | 0.93
# A multiply-add over the window for each tap of a depthwise kernel is slower than the better of the two at every
# block (7x7: 0.40 | 0.30, 0.38 | 0.31, 0.35 | 0.34, 0.22 | 1.01).
HALO_WINDOW = 2


@dataclass(frozen=True)
class Geometry:
    """What of a sliding window decides its index tables, (vertical, horizontal) each.

    `block` is the side of a cell, `padding` how far the first window starts before the map.
    """

    block: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def out_block(self) -> tuple[int, int]:
        """The side of a cell in positions of the output."""
        return self.block[0] // self.stride[0], self.block[1] // self.stride[1]

    @property
    def halo(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """How far the windows of a block reach ((above, below), (left, right)) of it; negative if they stop short."""
        return tuple(
            (padding, dilation * (kernel - 1) - padding - (stride - 1))
            for kernel, stride, padding, dilation in zip(self.kernel, self.stride, self.padding, self.dilation)
        )

    def turned(self) -> Geometry:
        """The geometry in which the outputs of stride 1 meet the inputs that read them."""
        reach = tuple(dilation * (kernel - 1) for kernel, dilation in zip(self.kernel, self.dilation))
        padding = tuple(far - near for far, near in zip(reach, self.padding))
        return replace(self, padding=padding)

    @property
    def window(self) -> tuple[int, int]:
        """The side of a block with its halo."""
        return tuple(block + sum(halo) for block, halo in zip(self.block, self.halo))


def pixels(x: Tensor) -> Tensor:
    """Rows (V, C, b, b) as (V*b*b, C), a view when they are channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def new_rows(like: Tensor, channels: int, block: tuple[int, int]) -> Tensor:
    """Uninitialised rows (V, channels, *block), channels last."""
    return like.new_empty(like.shape[0], *block, channels).permute(0, 3, 1, 2)


def patch_product(x: Tensor, weight: Tensor, bias: Tensor | None, out_block: tuple[int, int]) -> Tensor:
    """A convolution whose windows are patches side by side, as one product: every patch is a row of its pixels."""
    (height, width), (kh, kw) = out_block, weight.shape[2:]
    patches = x.permute(0, 2, 3, 1).reshape(-1, height, kh, width, kw, x.shape[1]).transpose(2, 3)
    y = F.linear(patches.flatten(3), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def pointwise_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, as a product over rows: a convolution library handles thousands of tiny images badly.

    But it handles one tall image well, and in float32 better than a BLAS does.
    """
    count, _, height, width = x.shape
    rows = pixels(x)
    if x.device.type == "cpu" and autocast_dtype(x) == torch.float32 and min(height, width) >= CONVOLUTION_BLOCK:
        tall = rows.view(1, count * height, width, -1).permute(0, 3, 1, 2)
        y = pixels(F.conv2d(tall, weight, bias))
    else:
        y = F.linear(rows, weight.flatten(1), bias)
    return y.view(count, height, width, -1).permute(0, 3, 1, 2)


class Halo:
    """Where the windows of a geometry read (`VisibleCells.neighbours`); `hidden`, `outside`: flat positions."""

    def __init__(self, index: Tensor, state: Tensor):
        self.index, self.state = index, state
        self.hidden, self.outside = ((state.flatten() == kind).nonzero()[:, 0] for kind in (1, 2))

    def read(self, x: Tensor, outside: float = 0.0) -> Tensor:
        """Rows (V, C, b, b) to windows (V, C, *window), channels last."""
        rows = pixels(x).index_select(0, self.index.flatten())
        rows.index_fill_(0, self.hidden, 0).index_fill_(0, self.outside, outside)
        return rows.view(*self.index.shape, -1).permute(0, 3, 1, 2)


class CellsBackend:
    """Features are rows (V, C, b, b). The same operations as `MaskedBackend`, with the same results at visible cells.

    One object serves one forward: it keeps the index tables of the mask, one for each geometry that occurs.
    """

    def __init__(self, cells: VisibleCells):
        self.cells = cells
        self.cell_size: tuple[int, int] | None = None  # in pixels; known from `enter` on
        self._halos: dict[Geometry, Halo] = {}
        self._taps: dict[Geometry, list[tuple[Tensor, Tensor] | None]] = {}

    def enter(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 3, H, W) to rows (V, 3, H/gh, W/gw)."""
        rows = self.cells.gather(pixel_values)
        self.cell_size = tuple(rows.shape[-2:])
        return rows

    def leave(self, x: Tensor) -> Tensor:
        """Rows (V, C, b, b) to a dense map (B, C, gh*b, gw*b), zero at hidden positions."""
        return self.cells.scatter(x)

    def conv2d(self, layer: nn.Conv2d, dense: Dense, x: Tensor) -> Tensor:
        """Convolution: hidden and outside positions count as zeros."""
        weight, shape = layer.kernel(), self.geometry(layer, x)
        if layer.kernel_size == (1, 1) and layer.groups == 1:
            return pointwise_product(x[:, :, :: layer.stride[0], :: layer.stride[1]], weight, layer.bias)
        if shape.kernel == shape.stride and shape.padding == (0, 0) and layer.groups == 1 and layer.dilation == (1, 1):
            return patch_product(x, weight, layer.bias, shape.out_block)
        if layer.groups > 1 and max(shape.window) > HALO_WINDOW * min(shape.block):
            vertical, horizontal = shape.halo
            maps = F.pad(self.cells.scatter(x), (*horizontal, *vertical))
            return self.cells.gather(F.conv2d(maps, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups))
        wide = min(shape.out_block) >= CONVOLUTION_BLOCK
        if layer.groups > 1 or (wide and shape.stride != (1, 1)):
            window = self.window(x, shape)
            return F.conv2d(window, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
        dtype = autocast_dtype(x)  # a custom Function is not autocast by itself
        x, weight = x.to(dtype), weight.to(dtype)
        y = (
            HaloConvolution.apply(x, weight, self, shape)
            if wide
            else TapConvolution.apply(x, weight, self.taps(shape), shape.out_block)
        )
        return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)

    def max_pool2d(self, layer: nn.MaxPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Maximum over a window: hidden positions count as zeros, those outside the image not at all."""
        shape = self.geometry(layer, x)
        outside = 0.0 if pads_with_zeros(layer, x) else float("-inf")
        return F.max_pool2d(self.window(x, shape, outside), shape.kernel, shape.stride, 0, shape.dilation)

    def avg_pool2d(self, layer: nn.AvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over a window: hidden positions count as zeros; a window over the whole map is a global mean."""
        size = tuple(cells * block for cells, block in zip(self.cells.grid, x.shape[-2:]))
        if covers(layer, size):
            return self.global_avg_pool2d(layer, dense, x)
        shape = self.geometry(layer, x)
        sums = F.avg_pool2d(self.window(x, shape), shape.kernel, shape.stride, divisor_override=1)
        # The divisor depends on the place in the image only, by rules (padding, overhang) that torch shall apply.
        ones = x.new_ones(1, 1, *(side + sum(zeros) for side, zeros in zip(size, zero_padding(x))))
        window = layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad
        weights = F.avg_pool2d(ones, *window, layer.divisor_override) / F.avg_pool2d(ones, *window, 1)
        return sums * self.cells.gather(weights.expand(self.cells.batch_size, -1, -1, -1))

    def zero_pad2d(self, layer: nn.ConstantPad2d, dense: Dense, x: Tensor) -> Tensor:
        """Zeros around the image: noted on `x` for the convolution or pooling that follows."""
        return promise_zero_padding(layer, x.view_as(x))

    def batch_norm(self, layer: nn.BatchNorm2d, dense: Dense, x: Tensor) -> Tensor:
        """BatchNorm; the rows are the visible positions."""
        if x.shape[-2:] != (1, 1):
            return batch_norm(layer, x)
        # One pixel a cell: the strides of (V, C, 1, 1) look like NCHW, whose backward is ten times slower here.
        return batch_norm(layer, x[:, :, 0, 0])[:, :, None, None]

    def global_avg_pool2d(self, layer: nn.AdaptiveAvgPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Mean over each image's visible positions, repeated for its cells: (V, C, 1, 1)."""
        return self.image_mean(x)[:, :, None, None].to(x.dtype)

    def group_norm(self, layer: nn.GroupNorm, dense: Dense, x: Tensor) -> Tensor:
        """GroupNorm over each image's visible positions, and the activation that BiT's holds."""

        def group_mean(values: Tensor) -> Tensor:
            groups = self.image_mean(values).unflatten(1, (layer.num_groups, -1)).mean(2)
            return groups.repeat_interleave(x.shape[1] // layer.num_groups, 1)[:, :, None, None]

        centred = x - group_mean(x)
        y = centred * (group_mean(centred.square()) + layer.eps).rsqrt()
        if layer.weight is not None:
            y = y * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
        y = y.to(x.dtype)
        return layer.activation(y) if hasattr(layer, "activation") else y

    def global_response_norm(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """GRN (2301.00808, section 3.3) over each image's visible positions; x is (V, b, b, C) or (V, C, b, b)."""
        maps = x.permute(0, 3, 1, 2) if layer.channels_last else x
        of_cells = torch.linalg.vector_norm(maps, dim=(2, 3), keepdim=True)
        of_images = torch.linalg.vector_norm(self.cells.scatter(of_cells), dim=(2, 3))  # (B, C)
        response = (of_images / (of_images.mean(1, keepdim=True) + 1e-6))[self.cells.image_index]
        weight, bias = layer.weight.flatten(), layer.bias.flatten()
        if layer.channels_last:
            return weight * (x * response[:, None, None]) + bias + x
        return weight[:, None, None] * (x * response[:, :, None, None]) + bias[:, None, None] + x

    def squeeze_excitation(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Channels times a gate that is a function of their means over each image's visible positions."""
        return x * layer.excite(self.global_avg_pool2d(layer, dense, x))

    def pointwise(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """A layer on single positions."""
        return dense(x)

    def drop(self, layer: nn.Module, dense: Dense, x: Tensor) -> Tensor:
        """Stochastic depth or channel dropout: drawn for each image, and applied to all its cells."""
        if not layer.training:
            return x
        factors = dense(x.new_ones(self.cells.batch_size, x.shape[1], 1, 1))
        return x * factors[self.cells.image_index]

    def image_mean(self, x: Tensor) -> Tensor:
        """Mean over each image's visible positions, repeated for its cells: (V, C), at least float32."""
        image = self.cells.image_index
        sums = self.cells.scatter(x.to(torch.promote_types(x.dtype, torch.float32)).sum((2, 3), keepdim=True))
        means = sums.sum((2, 3)) / (self.cells.cells_per_image[:, None] * x.shape[2] * x.shape[3])
        return means[image]

    def geometry(self, layer: nn.Module, x: Tensor) -> Geometry:
        """How the windows of a convolution or pooling lie on rows `x`.

        Raises:
            ValueError: the outputs would not be whole cells.
        """
        block, stride = tuple(x.shape[-2:]), pair(layer.stride)
        check_stride(layer, block, self.cell_size)
        padding = checked_padding_before(layer, x)
        return Geometry(block, pair(layer.kernel_size), stride, padding, pair(getattr(layer, "dilation", 1)))

    def window(self, x: Tensor, shape: Geometry, outside: float = 0.0) -> Tensor:
        """Rows (V, C, b, b) with the halo that `shape` reads: zeros in hidden cells, `outside` off the image."""
        if x.shape[1] < FEW_CHANNELS:
            return self.cut_windows(x, shape, outside)
        return HaloWindow.apply(x, self.halo(shape), outside)

    def halo(self, shape: Geometry) -> Halo:
        """Where the windows of `shape` read."""
        if shape not in self._halos:
            self._halos[shape] = Halo(*self.cells.neighbours(shape.block, *shape.padding, shape.window))
        return self._halos[shape]

    def cut_windows(self, x: Tensor, shape: Geometry, outside: float) -> Tensor:
        """`window` without an index for every pixel: the cells' windows of the padded map, cut out whole."""
        vertical, horizontal = shape.halo
        maps = F.pad(self.cells.scatter(x), (*horizontal, *vertical), value=outside)
        windows = maps.unfold(2, shape.window[0], shape.block[0]).unfold(3, shape.window[1], shape.block[1])
        row, column = self.cells.cell_index // self.cells.grid[1], self.cells.cell_index % self.cells.grid[1]
        return windows[self.cells.image_index, :, row, column].contiguous(memory_format=torch.channels_last)

    def taps(self, shape: Geometry) -> list[tuple[Tensor, Tensor] | None]:
        """For each kernel tap, row-major, the (output, input) pixels of rows that it joins; None: each with itself."""
        if shape not in self._taps:
            halo, taps = self.halo(shape), []
            for ky in range(shape.kernel[0]):
                for kx in range(shape.kernel[1]):
                    top, left = ky * shape.dilation[0], kx * shape.dilation[1]
                    if shape.stride == (1, 1) and (top, left) == shape.padding:
                        taps.append(None)
                        continue
                    rows, columns = (
                        slice(start, start + (count - 1) * stride + 1, stride)
                        for start, count, stride in zip((top, left), shape.out_block, shape.stride)
                    )
                    outputs = (halo.state[:, rows, columns].flatten() == 0).nonzero()[:, 0]
                    taps.append((outputs, halo.index[:, rows, columns].flatten()[outputs]))
            self._taps[shape] = taps
        return self._taps[shape]


class HaloWindow(torch.autograd.Function):
    """`Halo.read` whose backward leaves out what was filled in, instead of clearing a copy of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, halo: Halo, outside: float) -> Tensor:
        """Rows (V, C, b, b) to windows (V, C, *window)."""
        ctx.halo, ctx.block = halo, x.shape[2:]
        return halo.read(x, outside)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the rows."""
        count, channels = grad.shape[:2]
        height, width = ctx.block
        size = count * height * width
        # A row more than there are pixels takes what belongs to none.
        target = ctx.halo.index.masked_fill(ctx.halo.state != 0, size).flatten()
        rows = grad.new_zeros(size + 1, channels).index_add_(0, target, pixels(grad))[:size]
        return rows.view(count, height, width, channels).permute(0, 3, 1, 2), None, None


class HaloConvolution(torch.autograd.Function):
    """A convolution of stride 1 as one of windows with a halo.

    The gradient of its input is the same operation on the output's gradient, with the kernel turned around: a
    convolution's own backward would also compute the gradient of the halo, and the sums over it would follow.
    Nothing but input and weight is kept for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, backend: CellsBackend, shape: Geometry) -> Tensor:
        """Rows (V, I, b, b) and weight (O, I, kh, kw) to (V, O, b, b)."""
        ctx.save_for_backward(x, weight)
        ctx.backend, ctx.shape = backend, shape
        return F.conv2d(backend.halo(shape).read(x), weight, dilation=shape.dilation)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Gradients of rows and weight."""
        x, weight = ctx.saved_tensors
        shape, grad_x = ctx.shape, None
        if ctx.needs_input_grad[0]:
            turned = weight.transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
            windows = ctx.backend.halo(shape.turned()).read(grad)
            grad_x = F.conv2d(windows, turned, dilation=shape.dilation)
        windows = ctx.backend.halo(shape).read(x)
        if x.dtype == torch.float32 and min(shape.block) >= WEIGHT_GRADIENT_BLOCK:
            grad_weight = torch.nn.grad.conv2d_weight(windows, weight.shape, grad, dilation=shape.dilation)
        else:
            grad_weight = columns_product(windows, grad, shape)
        return grad_x, grad_weight, None, None


def columns_product(windows: Tensor, grad: Tensor, shape: Geometry) -> Tensor:
    """The weight's gradient (O, I, kh, kw) as one product: of the outputs' gradient and every window's columns."""
    width, channels = windows.shape[3], windows.shape[1]
    size = (len(windows), *shape.block, *shape.kernel, channels)
    row, column = width * channels, channels
    strides = (windows.shape[2] * row, row, column, shape.dilation[0] * row, shape.dilation[1] * column, 1)
    columns = windows.as_strided(size, strides).reshape(-1, shape.kernel[0] * shape.kernel[1] * channels)
    product = pixels(grad).t() @ columns
    return product.view(-1, *shape.kernel, channels).permute(0, 3, 1, 2)


class TapConvolution(torch.autograd.Function):
    """A convolution as one matrix product for each kernel tap, over the pairs of pixels that exist.

    Its forward and backward cost exactly the visible part; nothing but input and weight is kept for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, taps: list[tuple[Tensor, Tensor] | None], out_block) -> Tensor:
        """Rows (V, I, b, b) and weight (O, I, kh, kw) to (V, O, *out_block)."""
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
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Gradients of rows and weight."""
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
