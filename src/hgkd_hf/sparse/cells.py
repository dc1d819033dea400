"""Backend "cells": only visible cells are computed.

A feature is (V, C, b, b): one row for every visible cell of the batch, channels last in memory, b = 8, 4, 2, 1 pixels
at the stages of a stride-32 network with 32-pixel cells. Pointwise operations, BatchNorm and residual sums are then
the stock ones and exact over visible positions. A layer whose kernel is wider than a pixel looks beyond its cell:
it reads neighbouring visible cells through index tables, and zeros where the neighbour is hidden or outside.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import cell_kernels
from .backend import Backend, Dense
from .cell_kernels import HaloConvolution, HaloMaximum, HaloWindow
from .geometry import (
    check_stride,
    checked_padding_before,
    covers,
    pads_with_zeros,
    pair,
    promise_zero_padding,
    zero_padding,
)
from .masking import VisibleCells
from .norm import batch_norm
from .row_products import PairConvolution, PatchConvolution, autocast_dtype, patch_product, pointwise_product
from .tables import IndexTables, pixels
from .windows import Geometry

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


class CellsBackend(Backend):
    """Features are rows (V, C, b, b). The same operations as `MaskedBackend`, with the same results at visible cells.

    One object serves one forward and its backward: it keeps the index tables of the mask.

    Args:
        cells: the mask.
        static: whether all shapes shall follow from the number of visible cells, so that nothing that is computed
            has to be looked at (no host waits for its device, and CUDA graphs are possible). By default everywhere
            but on the CPU, where listing the pairs of positions that exist costs nothing and saves the others.
    """

    def __init__(self, cells: VisibleCells, static: bool | None = None):
        self.cells = cells
        self.cell_size: tuple[int, int] | None = None  # in pixels; known from `enter` on
        self.tables = IndexTables(cells, cells.device.type != "cpu" if static is None else static)

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
            x = x[:, :, :: layer.stride[0], :: layer.stride[1]]
            tall = min(x.shape[2:]) >= cell_kernels.CONVOLUTION_BLOCK
            return pointwise_product(x, weight, layer.bias, tall)
        if shape.kernel == shape.stride and shape.padding == (0, 0) and layer.groups == 1 and layer.dilation == (1, 1):
            return patch_product(x, weight, layer.bias, shape.out_block)
        if layer.groups > 1 and max(shape.window) > HALO_WINDOW * min(shape.block):
            vertical, horizontal = shape.halo
            maps = F.pad(self.cells.scatter(x), (*horizontal, *vertical))
            return self.cells.gather(F.conv2d(maps, weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups))
        x = x.to(autocast_dtype(x))  # a custom Function is not autocast by itself
        wide = min(shape.out_block) >= cell_kernels.CONVOLUTION_BLOCK
        strided = shape.stride != (1, 1)
        if layer.groups > 1 or x.shape[1] < FEW_CHANNELS or (wide and strided and not self.tables.static):
            y = F.conv2d(self.window(x, shape), weight, None, layer.stride, 0, layer.dilation, layer.groups)
        elif wide and not strided:
            y = self.wide_convolution(x, weight, shape)
        else:
            y = self.narrow_convolution(x, weight, shape)
        # Added here, its gradient is a pairwise sum: before BatchNorm it is zero, and the library's rounds more.
        return y if layer.bias is None else y + layer.bias.to(y.dtype).view(-1, 1, 1)

    def wide_convolution(self, x: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
        """A convolution of stride 1 of blocks that are not small against their halo."""
        tables, listed = self.tables, not self.tables.static and min(shape.block) < cell_kernels.WEIGHT_GRADIENT_BLOCK
        pairs = tables.pairs(shape) if listed else None
        return HaloConvolution.apply(x, weight, shape, tables.halo(shape), tables.halo(shape.turned()), pairs)

    def narrow_convolution(self, x: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
        """A convolution, strided or not, of blocks of few pixels."""
        if self.tables.static:
            tables = self.tables.patches(shape), self.tables.patch_readers(shape)
            y = PatchConvolution.apply(pixels(x), weight, *tables)
        else:
            y = PairConvolution.apply(pixels(x), weight, self.tables.pairs(shape))
        return y.view(len(x), *shape.out_block, -1).permute(0, 3, 1, 2)

    def max_pool2d(self, layer: nn.MaxPool2d, dense: Dense, x: Tensor) -> Tensor:
        """Maximum over a window: hidden positions count as zeros, those outside the image not at all."""
        shape = self.geometry(layer, x)
        outside = 0.0 if pads_with_zeros(layer, x) else float("-inf")
        halo, readers = self.tables.halo_of_maximum(shape), self.tables.halo_readers(shape)
        return HaloMaximum.apply(x, shape, halo, readers, outside)

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
        return batch_norm(layer, x.flatten(1))[:, :, None, None]

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

    def window(self, x: Tensor, shape: Geometry) -> Tensor:
        """Rows (V, C, b, b) with the halo that `shape` reads, zeros where nothing is."""
        if x.shape[1] < FEW_CHANNELS:
            return self.cut_windows(x, shape)
        return HaloWindow.apply(x, self.tables.halo(shape), self.tables.halo_readers(shape), 0.0)

    def cut_windows(self, x: Tensor, shape: Geometry) -> Tensor:
        """`window` without an index for every pixel: the cells' windows of the padded map, cut out whole."""
        vertical, horizontal = shape.halo
        maps = F.pad(self.cells.scatter(x), (*horizontal, *vertical))
        windows = maps.unfold(2, shape.window[0], shape.block[0]).unfold(3, shape.window[1], shape.block[1])
        row, column = self.cells.cell_index // self.cells.grid[1], self.cells.cell_index % self.cells.grid[1]
        return windows[self.cells.image_index, :, row, column].contiguous(memory_format=torch.channels_last)
