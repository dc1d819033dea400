"""Kernels of the cells backend: convolutions of rows (V, C, b, b), each exact over visible cells.

A kernel that is wider than a pixel reads neighbouring visible cells through an index table, `Halo`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# From this output block side on, a convolution of stride 1 runs as one convolution of windows with a halo, below it as
# one matrix product per kernel tap; a 1x1 convolution in float32 as one of a tall image, below it as a product over
# rows. Forward + backward, speed-up over the dense convolution (benchmarks/sparse_encoder.py --kernels; 2 cores with
# AVX-512, float32 | bf16, 20 of 49 cells visible, 64, 128, 256, 512 channels: equal FLOPs at every block):
#   block                8            4            2            1
#   3x3, convolution     1.95 | 1.36  1.59 | 1.44  1.33 | 1.29  0.78 | 0.88
#   3x3, products        0.86 | 0.68  1.35 | 0.97  1.88 | 1.47  2.57 | 2.27
CONVOLUTION_BLOCK = 4

# From this block side on, a library's own gradient of the weight beats a product per tap.
WEIGHT_GRADIENT_BLOCK = 8


# For each kernel tap, row-major, the (output, input) pixels of rows that it joins; None: each with itself.
Taps = list[tuple[Tensor, Tensor] | None]


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
    x = x.to(autocast_dtype(x))
    patches = x.permute(0, 2, 3, 1).reshape(-1, height, kh, width, kw, x.shape[1]).transpose(2, 3)
    y = RowProduct.apply(patches.reshape(-1, kh * kw * x.shape[1]), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.view(-1, height, width, y.shape[1]).permute(0, 3, 1, 2)


def pointwise_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution, as a product over rows: a convolution library handles thousands of tiny images badly.

    But it handles one tall image well, and in float32 better than a BLAS does.
    """
    count, _, height, width = x.shape
    rows = pixels(x.to(autocast_dtype(x)))
    if x.device.type == "cpu" and rows.dtype == torch.float32 and min(height, width) >= CONVOLUTION_BLOCK:
        tall = rows.view(1, count * height, width, -1).permute(0, 3, 1, 2)
        y = pixels(F.conv2d(tall, weight, bias))
    else:
        y = RowProduct.apply(rows, weight.flatten(1), bias)
    return y.view(count, height, width, -1).permute(0, 3, 1, 2)


class RowProduct(torch.autograd.Function):
    """`F.linear` in the dtype of the rows.

    As in the convolutions below, backward casts the weight again instead of keeping it: cast weights do not shrink
    with the mask, and autocast would hold those of the whole network until backward.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Rows (n, I), weight (O, I) and bias (O,) to (n, O)."""
        ctx.save_for_backward(rows, weight, bias)
        return F.linear(rows, weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Gradients of rows, weight and bias."""
        rows, weight, bias = ctx.saved_tensors
        grad_rows = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        # The gradient that stays is allocated before the product, which then leaves no hole in the heap below it.
        grad_weight = torch.empty_like(weight).copy_(grad.t() @ rows)
        return grad_rows, grad_weight, None if bias is None else grad.sum(0, dtype=bias.dtype)


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


class HaloMaximum(torch.autograd.Function):
    """A maximum over windows with a halo that keeps neither windows nor their indices: backward finds both again."""

    @staticmethod
    def forward(ctx, x: Tensor, shape: Geometry, halo: Halo, outside: float) -> Tensor:
        """Rows (V, C, b, b) to (V, C, *out_block)."""
        ctx.save_for_backward(x)
        ctx.shape, ctx.halo, ctx.outside = shape, halo, outside
        return HaloMaximum.pool(halo.read(x, outside), shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the rows."""
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            rows = x.detach().requires_grad_()
            y = HaloMaximum.pool(HaloWindow.apply(rows, ctx.halo, ctx.outside), ctx.shape)
        return *torch.autograd.grad(y, rows, grad), None, None, None

    @staticmethod
    def pool(windows: Tensor, shape: Geometry) -> Tensor:
        """Windows (V, C, *window) to (V, C, *out_block)."""
        return F.max_pool2d(windows, shape.kernel, shape.stride, 0, shape.dilation)


class HaloConvolution(torch.autograd.Function):
    """A convolution of stride 1 as one of windows with a halo.

    The gradient of its input is the same operation on the output's gradient, with the kernel turned around: a
    convolution's own backward would also compute the gradient of the halo, and the sums over it would follow.
    Nothing but input and weight is kept for backward.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, shape: Geometry, halo: Halo, turned: Halo, taps: Taps | None
    ) -> Tensor:
        """Rows (V, I, b, b) and weight (O, I, kh, kw), of any dtype, to (V, O, b, b) in the dtype of the rows.

        `turned` is the halo of `shape.turned()`; the weight's gradient is `tap_gradients`, without taps the library's.
        """
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.halo, ctx.turned, ctx.taps = shape, halo, turned, taps
        return F.conv2d(halo.read(x), weight.to(x.dtype), dilation=shape.dilation)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        """Gradients of rows and weight."""
        x, weight = ctx.saved_tensors
        shape, grad_x = ctx.shape, None
        if ctx.needs_input_grad[0]:
            kernel = weight.to(grad.dtype).transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
            grad_x = F.conv2d(ctx.turned.read(grad), kernel, dilation=shape.dilation)
        if ctx.taps is None:
            windows = ctx.halo.read(x)
            grad_weight = torch.nn.grad.conv2d_weight(windows, weight.shape, grad, dilation=shape.dilation)
            grad_weight = grad_weight.to(weight.dtype)
        else:
            grad_weight = tap_gradients(x, grad, weight, ctx.taps)
        return grad_x, grad_weight, None, None, None, None


def tap_gradients(x: Tensor, grad: Tensor, weight: Tensor, taps: Taps) -> Tensor:
    """The weight's gradient (O, I, kh, kw), one matrix product for each kernel tap."""
    inputs, grads = pixels(x), pixels(grad)
    grad_weight = torch.empty_like(weight)
    for tap, pairs in enumerate(taps):
        ky, kx = divmod(tap, weight.shape[3])
        tap_grads, tap_inputs = grads, inputs
        if pairs is not None:
            tap_grads, tap_inputs = grads.index_select(0, pairs[0]), inputs.index_select(0, pairs[1])
        if weight.dtype == x.dtype:
            torch.mm(tap_grads.t(), tap_inputs, out=grad_weight[:, :, ky, kx])
        else:
            grad_weight[:, :, ky, kx] = tap_grads.t() @ tap_inputs
    return grad_weight


class TapConvolution(torch.autograd.Function):
    """A convolution as one matrix product for each kernel tap, over the pairs of pixels that exist.

    Its forward and backward cost exactly the visible part; nothing but input and weight is kept for backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, taps: Taps, out_block) -> Tensor:
        """Rows (V, I, b, b) and weight (O, I, kh, kw), of any dtype, to (V, O, *out_block) in the rows' dtype."""
        ctx.save_for_backward(x, weight)
        ctx.taps = taps
        weight = weight.to(x.dtype)
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
        if not ctx.needs_input_grad[0]:
            return None, tap_gradients(x, grad, weight, ctx.taps), None, None
        grads, grad_x = pixels(grad), new_rows(x, x.shape[1], x.shape[2:]).zero_()
        cast = weight.to(x.dtype)
        for tap, pairs in enumerate(ctx.taps):
            tap_weight = cast[:, :, *divmod(tap, weight.shape[3])]
            if pairs is None:
                pixels(grad_x).addmm_(grads, tap_weight)
            else:
                to, origin = pairs
                pixels(grad_x).index_add_(0, origin, grads.index_select(0, to) @ tap_weight)
        return grad_x, tap_gradients(x, grad, weight, ctx.taps), None, None
