"""Kernels of the cells backend that work on windows: rows (V, C, b, b) with what lies around them, a halo."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .row_products import pair_weight_gradient
from .tables import Halo, Pairs, Readers, pixels
from .windows import Geometry

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


class HaloWindow(torch.autograd.Function):
    """`Halo.read` whose backward lets each position gather its gradient, instead of scattering that of the windows."""

    @staticmethod
    def forward(ctx, x: Tensor, halo: Halo, readers: Readers, outside: float) -> Tensor:
        """Rows (V, C, b, b) to windows (V, C, *window)."""
        ctx.readers, ctx.block = readers, x.shape[2:]
        return halo.read(x, outside)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the rows."""
        rows = ctx.readers.sum(pixels(grad))
        return rows.view(len(grad), *ctx.block, grad.shape[1]).permute(0, 3, 1, 2), None, None, None


class HaloMaximum(torch.autograd.Function):
    """A maximum over windows with a halo that keeps neither windows nor their indices: backward finds both again."""

    @staticmethod
    def forward(ctx, x: Tensor, shape: Geometry, halo: Halo, readers: Readers, outside: float) -> Tensor:
        """Rows (V, C, b, b) to (V, C, *out_block)."""
        ctx.save_for_backward(x)
        ctx.shape, ctx.halo, ctx.readers, ctx.outside = shape, halo, readers, outside
        return HaloMaximum.pool(halo.read(x, outside), shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The gradient of the rows."""
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            rows = x.detach().requires_grad_()
            y = HaloMaximum.pool(HaloWindow.apply(rows, ctx.halo, ctx.readers, ctx.outside), ctx.shape)
        return *torch.autograd.grad(y, rows, grad), None, None, None, None

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
        ctx, x: Tensor, weight: Tensor, shape: Geometry, halo: Halo, turned: Halo, pairs: Pairs | None
    ) -> Tensor:
        """Rows (V, I, b, b) and weight (O, I, kh, kw), of any dtype, to (V, O, b, b) in the dtype of the rows.

        `turned` is the halo of `shape.turned()`. The weight's gradient is that of the `pairs`, without them the
        library's.
        """
        ctx.save_for_backward(x, weight)
        ctx.shape, ctx.halo, ctx.turned, ctx.pairs = shape, halo, turned, pairs
        return F.conv2d(halo.read(x), weight.to(x.dtype), dilation=shape.dilation)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None, None, None]:
        """Gradients of rows and weight."""
        x, weight = ctx.saved_tensors
        shape, pairs, grad_x = ctx.shape, ctx.pairs, None
        if ctx.needs_input_grad[0]:
            kernel = weight.to(grad.dtype).transpose(0, 1).flip(2, 3).contiguous(memory_format=torch.channels_last)
            grad_x = F.conv2d(ctx.turned.read(grad), kernel, dilation=shape.dilation)
        if pairs is None:
            windows = ctx.halo.read(x)
            grad_weight = torch.nn.grad.conv2d_weight(windows, weight.shape, grad, dilation=shape.dilation)
            grad_weight = grad_weight.to(weight.dtype)
        else:
            inputs, grads = pixels(x).index_select(0, pairs.inputs), pixels(grad).index_select(0, pairs.outputs)
            grad_weight = pair_weight_gradient(inputs, grads, weight, pairs)
        return grad_x, grad_weight, None, None, None, None
