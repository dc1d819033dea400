"""Backend "spconv": the cells backend with its wider convolutions on the kernels of the spconv package.

An optional extra, meant for float16 and float32 on NVIDIA GPUs; its CPU wheel is right, but slower than "cells".
Features are rows (V, C, b, b) and every other operation is the cells backend's. A convolution whose kernel is wider
than a pixel is spconv's gather, matrix product and scatter (https://github.com/traveller59/spconv, version 2.3.8),
driven by index tables made here from the mask: with spconv's own, strided layers add visible positions. Grouped
convolutions, which spconv lacks, are the cells backend's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .backend import Dense
from .cells import CellsBackend
from .masking import VisibleCells
from .row_products import autocast_dtype
from .tables import pixels
from .windows import Geometry

DTYPES = (torch.float16, torch.float32, torch.float64)
GPU_WHEELS = "spconv-cu118, spconv-cu121, spconv-cu124 or spconv-cu126"


class SpconvBackend(CellsBackend):
    """Features are rows (V, C, b, b), as in `CellsBackend`; parameters stay those of `nn.Conv2d`.

    Raises:
        ImportError: the spconv package is not installed.
        RuntimeError: the cells are on a device for which the installed spconv has no kernels.
    """

    def __init__(self, cells: VisibleCells):
        try:
            from spconv.pytorch import ops
        except ImportError as error:
            raise ImportError(
                'sparse backend "spconv" needs the package spconv: pip install "hgkd_hf[spconv]" for CPU, '
                f"or for NVIDIA GPUs {GPU_WHEELS}, whichever fits your CUDA (only one of them all: they overwrite "
                "each other)."
            ) from error
        device = cells.device.type
        if device not in ("cpu", "cuda") or (device == "cuda" and ops.CPU_ONLY_BUILD):
            raise RuntimeError(
                f'the installed spconv has no kernels for {device}: use sparse backend "cells", '
                f"or, for NVIDIA GPUs, pip uninstall spconv and pip install {GPU_WHEELS}."
            )
        if not torch.cuda.is_available():
            # spconv's backward asks torch for the CUDA stream even on CPU, where it makes no use of it; torch without
            # CUDA raises. Where CUDA exists the question is answered, and spconv is left as it is.
            ops.get_current_stream = lambda: 0
        super().__init__(cells)
        self._pairs: dict[Geometry, tuple[Tensor, Tensor]] = {}

    def conv2d(self, layer: nn.Conv2d, dense: Dense, x: Tensor) -> Tensor:
        """Convolution of rows (V, I, b, b) to (V, O, b', b'): hidden and outside positions count as zeros.

        Raises:
            ValueError: the windows do not fit the cells, or spconv cannot do it: bfloat16, or tensors beyond
                its 32-bit offsets.
        """
        if layer.kernel_size == (1, 1) or layer.groups > 1:  # spconv reinterprets 1x1 weights, and has no groups
            return super().conv2d(layer, dense, x)
        dtype = autocast_dtype(x)  # a custom Function is not autocast by itself
        if dtype not in DTYPES:
            raise ValueError(f'{layer}: spconv has no {dtype}, use float16, float32 or sparse backend "cells".')
        shape = self.geometry(layer, x)
        height, width = shape.out_block
        outputs = len(self.cells) * height * width
        if max(x.numel(), outputs * layer.out_channels) >= 2**31:
            raise ValueError(f"{layer}: spconv counts to 2**31 values a tensor only, use smaller batches.")
        weight = layer.kernel().to(dtype).permute(0, 2, 3, 1).contiguous()
        y = IndiceConvolution.apply(pixels(x.to(dtype)), weight, *self.pairs(shape), outputs)
        y = y if layer.bias is None else y + layer.bias.to(dtype)  # spconv adds none on CPU
        return y.view(len(self.cells), height, width, -1).permute(0, 3, 1, 2)

    def pairs(self, shape: Geometry) -> tuple[Tensor, Tensor]:
        """The (input, output) pixels of rows that each tap of the kernel joins, in spconv's layout.

        Returns:
            pairs: (2, kh*kw, V*b'*b') int32, inputs then outputs, the pairs of a tap first, then -1.
            counts: (kh*kw,) int32, the number of pairs of each tap.
        """
        if shape not in self._pairs:
            patches = self.tables.patches(shape).t()
            exists = patches < len(self.cells) * shape.block[0] * shape.block[1]
            tap, output = exists.nonzero(as_tuple=True)
            slot = (exists.cumsum(1) - 1)[tap, output]
            pairs = torch.full((2, *exists.shape), -1, dtype=torch.int32, device=self.cells.device)
            pairs[0, tap, slot] = patches[tap, output]
            pairs[1, tap, slot] = output.int()
            self._pairs[shape] = pairs, exists.sum(1, dtype=torch.int32)
        return self._pairs[shape]


class IndiceConvolution(torch.autograd.Function):
    """spconv's native convolution of x (n, I) by weight (O, kh, kw, I) over index tables: (outputs, O)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, pairs: Tensor, counts: Tensor, outputs: int) -> Tensor:
        """The pair tables and counts are those of `SpconvBackend.pairs`, on the device of `x`."""
        from spconv.pytorch import ops

        ctx.save_for_backward(x, weight, pairs, counts)
        with one_thread():
            return ops.indice_conv(x, weight, pairs, counts, outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        """The gradients of `x` and `weight`; there is no second derivative."""
        from spconv.pytorch import ops

        x, weight, pairs, counts = ctx.saved_tensors
        with one_thread():
            return *ops.indice_conv_backward(x, weight, grad, pairs, counts), None, None, None


@contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenMP run one thread in the block, on the calling thread only.

    The threads of the CPU wheel's scatter share a pointer that each of them moves (its csrc/sparse/gather.py), so that
    with more than one the values are wrong at random. Backward may run in another thread than forward, hence around
    each call. (Asking torch for its number first also makes it initialise the thread, which would undo ours later.)
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _set_own_openmp_threads()(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _set_own_openmp_threads() -> Callable[[int], None]:
    """`omp_set_num_threads` of the OpenMP that the CPU wheel brings along.

    spconv runs on torch's OpenMP, which `torch.set_num_threads` rules, if torch was imported first, otherwise on its
    own, which nothing else uses. The CUDA wheels have none.
    """
    from spconv import core_cc

    return getattr(ctypes.CDLL(core_cc.__file__), "omp_set_num_threads", lambda threads: None)
