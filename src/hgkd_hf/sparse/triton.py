"""Backend "triton": the cells backend whose wider convolutions gather inside their matrix product.

Right in Triton's interpreter on the CPU (`tests/sparse/test_triton.py`) and not yet run on a GPU: no default, and
nothing that a recipe can choose, until `benchmarks/gpu_check.py` has shown it right and faster there.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .cells import CellsBackend
from .masking import VisibleCells
from .tables import pixels
from .windows import Geometry

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class TritonBackend(CellsBackend):
    """Features are rows (V, C, b, b), as in `CellsBackend`; in float64 all of it is that backend's.

    Raises:
        ImportError: the triton package is not installed.
        RuntimeError: the cells are on a device for which it has no kernels.
    """

    def __init__(self, cells: VisibleCells):
        if find_spec("triton") is None:
            raise ImportError('sparse backend "triton" needs the package triton, which torch for CUDA brings along.')
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if cells.device.type != "cuda" and not interpreted:
            raise RuntimeError(
                f'sparse backend "triton" has no kernels for {cells.device.type}: use "cells" (or, to try it out, '
                f"set TRITON_INTERPRET=1)."
            )
        super().__init__(cells, static=True)

    def wide_convolution(self, x: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
        """A convolution of stride 1."""
        return self.narrow_convolution(x, weight, shape)

    def narrow_convolution(self, x: Tensor, weight: Tensor, shape: Geometry) -> Tensor:
        """A convolution, strided or not."""
        if x.dtype not in DTYPES:
            return super().narrow_convolution(x, weight, shape)
        tables = self.tables.patches(shape), self.tables.tap_outputs(shape)
        y = GatherConvolution.apply(pixels(x), weight, *tables)
        return y.view(len(x), *shape.out_block, -1).permute(0, 3, 1, 2)


class GatherConvolution(torch.autograd.Function):
    """A convolution as one kernel for each of output, input's and weight's gradient."""

    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor, patches: Tensor, outputs: Tensor) -> Tensor:
        """Rows (n, I) and weight (O, I, kh, kw), of any dtype, to (outputs, O) in the rows' dtype.

        The tables are `IndexTables.patches` and `.tap_outputs`.
        """
        from .triton_kernels import product

        ctx.save_for_backward(rows, weight, patches, outputs)
        return product(rows.contiguous(), weight.to(rows.dtype).flatten(2).permute(2, 1, 0).contiguous(), patches)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        """Gradients of rows and weight; there is no second derivative."""
        from .triton_kernels import product, weight_gradient

        (rows, weight, patches, outputs), grad, grad_rows = ctx.saved_tensors, grad.contiguous(), None
        if ctx.needs_input_grad[0]:
            grad_rows = product(grad, weight.to(grad.dtype).flatten(2).permute(2, 0, 1).contiguous(), outputs)
        grad_weight = weight_gradient(rows.contiguous(), grad, patches)
        grad_weight = grad_weight.permute(2, 1, 0).reshape(weight.shape).to(weight.dtype)
        return grad_rows, grad_weight, None, None
