"""Convolutions as matrix products over rows of positions.

Every product casts the weight again in backward instead of keeping it: cast weights do not shrink with the mask, and
autocast would hold those of the whole network until backward. Gathered rows are gathered again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tables import Pairs, Readers, gather_sum, pixels, with_absent


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product with `x` is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def patch_product(x: Tensor, weight: Tensor, bias: Tensor | None, out_block: tuple[int, int]) -> Tensor:
    """A convolution whose windows are patches side by side, as one product: every patch is a row of its pixels."""
    (height, width), (kh, kw) = out_block, weight.shape[2:]
    x = x.to(autocast_dtype(x))
    patches = x.permute(0, 2, 3, 1).reshape(-1, height, kh, width, kw, x.shape[1]).transpose(2, 3)
    y = RowProduct.apply(patches.reshape(-1, kh * kw * x.shape[1]), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.view(-1, height, width, y.shape[1]).permute(0, 3, 1, 2)


def pointwise_product(x: Tensor, weight: Tensor, bias: Tensor | None, tall: bool) -> Tensor:
    """A 1x1 convolution, as a product over rows: a convolution library handles thousands of tiny images badly.

    But on the CPU it handles one `tall` image well, and in float32 better than a BLAS does.
    """
    count, _, height, width = x.shape
    rows = pixels(x.to(autocast_dtype(x)))
    if tall and x.device.type == "cpu" and rows.dtype == torch.float32:
        image = rows.view(1, count * height, width, -1).permute(0, 3, 1, 2)
        y = pixels(F.conv2d(image, weight, bias))
    else:
        y = RowProduct.apply(rows, weight.flatten(1), bias)
    return y.view(count, height, width, -1).permute(0, 3, 1, 2)


def product_into(like: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` in a new tensor like `like`, which is allocated before what the product needs.

    A gradient stays; so it leaves no hole in the heap below it.
    """
    result = torch.empty_like(like)
    return torch.mm(left, right, out=result) if like.dtype == left.dtype else result.copy_(left @ right)


class RowProduct(torch.autograd.Function):
    """`F.linear` in the dtype of the rows."""

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
        grad_weight = product_into(weight, grad.t(), rows)
        return grad_rows, grad_weight, None if bias is None else grad.sum(0, dtype=bias.dtype)


class PatchConvolution(torch.autograd.Function):
    """A convolution as one product of patches: each output's inputs side by side, zeros where there is none.

    Shapes follow from the number of visible cells alone, and all sums have a fixed order.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, patches: Tensor, readers: Readers) -> Tensor:
        """Rows (n, I) and weight (O, I, kh, kw), of any dtype, to (outputs, O) in the rows' dtype.

        The tables are `IndexTables.patches` and `.patch_readers`.
        """
        ctx.save_for_backward(rows, weight, patches)
        ctx.readers = readers
        return PatchConvolution.gather(rows, patches) @ PatchConvolution.matrix(weight, rows.dtype).t()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Gradients of rows and weight."""
        rows, weight, patches = ctx.saved_tensors
        out, channels, kh, kw = weight.shape
        grad_weight = (grad.t() @ PatchConvolution.gather(rows, patches)).view(out, kh, kw, channels)
        grad_weight = grad_weight.permute(0, 3, 1, 2).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        # A row more than there are takes no gradient: what belongs to nobody reads it.
        grad_patches = grad.new_empty(patches.numel() + 1, channels)
        grad_patches[-1].zero_()
        matrix = PatchConvolution.matrix(weight, grad.dtype)
        torch.mm(grad, matrix, out=grad_patches[:-1].view(len(patches), -1))
        return gather_sum(grad_patches, *ctx.readers), grad_weight, None, None

    @staticmethod
    def gather(rows: Tensor, patches: Tensor) -> Tensor:
        """Rows (n, I) to patches (outputs, taps * I)."""
        return with_absent(rows).index_select(0, patches.flatten()).view(len(patches), -1)

    @staticmethod
    def matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A weight (O, I, kh, kw) as (O, taps * I)."""
        return weight.to(dtype).permute(0, 2, 3, 1).flatten(1)


class PairConvolution(torch.autograd.Function):
    """A convolution as one product for each kernel tap, over the pairs of positions that exist.

    Forward and backward cost exactly the visible part; the tables must be listed, on the CPU.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
        """Rows (n, I) and weight (O, I, kh, kw), of any dtype, to (outputs, O) in the rows' dtype."""
        ctx.save_for_backward(rows, weight)
        ctx.pairs = pairs
        matrices = weight.to(rows.dtype).flatten(2).permute(2, 1, 0)
        return gather_sum(pair_products(rows.index_select(0, pairs.inputs), matrices, pairs), *pairs.of_output)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None]:
        """Gradients of rows and weight."""
        (rows, weight), pairs = ctx.saved_tensors, ctx.pairs
        grads, grad_rows = grad.index_select(0, pairs.outputs), None
        if ctx.needs_input_grad[0]:
            matrices = weight.to(grad.dtype).flatten(2).permute(2, 0, 1)
            grad_rows = gather_sum(pair_products(grads, matrices, pairs), *pairs.of_input)
        return grad_rows, pair_weight_gradient(rows.index_select(0, pairs.inputs), grads, weight, pairs), None


def pair_products(rows: Tensor, matrices: Tensor, pairs: Pairs) -> Tensor:
    """Rows of pairs (n, I), those of each tap times its matrix of (taps, I, O): (n, O)."""
    products = rows.new_empty(len(rows), matrices.shape[2])
    for tap_rows, matrix, result in zip(rows.split(pairs.counts), matrices, products.split(pairs.counts)):
        torch.mm(tap_rows, matrix, out=result)
    return products


def pair_weight_gradient(inputs: Tensor, grads: Tensor, weight: Tensor, pairs: Pairs) -> Tensor:
    """The weight's gradient (O, I, kh, kw) from inputs (n, I) and gradients of outputs (n, O) of all pairs."""
    grad_weight = torch.empty_like(weight)
    products = grad_weight if weight.dtype == grads.dtype else torch.empty_like(weight, dtype=grads.dtype)
    taps = products.flatten(2).unbind(2)
    for tap_inputs, tap_grads, result in zip(inputs.split(pairs.counts), grads.split(pairs.counts), taps):
        torch.mm(tap_grads.t(), tap_inputs, out=result)
    return grad_weight if products is grad_weight else grad_weight.copy_(products)
