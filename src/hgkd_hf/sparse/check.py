"""Look at a network while it runs, for what `sparsify` cannot see: what a forward does between its modules."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .backends import visible
from .convert import sparsify
from .layers import SparseLayer, stock_class
from .masking import VisibleCells, expand_mask

# Two images with different numbers of visible cells; isolated and adjacent ones, inside and at the border.
MASK = [
    [[1, 0, 0], [0, 0, 1], [1, 0, 1]],
    [[0, 1, 1], [1, 0, 1], [1, 1, 1]],
]


def check_exact(backbone: nn.Module, cell_size: int, image_channels: int = 3, backend: str = "cells") -> None:
    """Make sure that a network computes on visible cells what it should, before long work depends on it.

    Runs the backends "masked" and `backend` on two small images (3x3 cells) whose hidden pixels differ between the two
    runs, and compares what every module gives at visible positions. BatchNorm uses batch statistics, all else is in
    eval mode. It works on a copy in float64 on the CPU: the network itself, its mode, buffers and the random state
    stay as they are. Vectors of a whole image (a classifier's, or a mean in a network's own forward) are not compared.

    Args:
        backbone: a network, sparsified already or not; its forward takes images (B, image_channels, H, W).
        cell_size: side of a mask cell in pixels, a multiple of the network's total stride.
        image_channels: number of channels of an image.
        backend: the one that is held against "masked".

    Raises:
        ValueError: a module differs between the backends, or cannot run on them; the message names the first one.
    """
    net = sparsify(copy.deepcopy(backbone)).to("cpu", torch.float64).eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train().synchronised = False
    cells = VisibleCells(torch.tensor(MASK, dtype=torch.bool))
    size = (3 * cell_size, 3 * cell_size)
    generator = torch.Generator().manual_seed(0)
    images, others = torch.randn(2, 2, image_channels, *size, generator=generator, dtype=torch.float64)
    hidden = expand_mask(cells.bool_masked_pos, size)[:, None]
    watcher = _Watcher(net, cells)
    watcher.run(images, backend)
    watcher.run(torch.where(hidden, others, images), "masked")


class _Watcher:
    """Records what every module gives with a backend, and compares it with what it gives with "masked".

    Its hooks stay on `net`, which must be a copy that is thrown away.
    """

    def __init__(self, net: nn.Module, cells: VisibleCells):
        self.net, self.cells = net, cells
        self.modules = dict(net.named_modules())
        self.rows: dict[tuple[str, int, int], Tensor] = {}  # by module, call and place among its outputs
        self.running: list[str] = []
        inside = ()  # what a sparse layer holds is its own affair
        for name, module in self.modules.items():
            if name.startswith(inside):
                continue
            if isinstance(module, SparseLayer):
                inside = (*inside, name + ".")
            module.register_forward_pre_hook(partial(self._before, name))
            module.register_forward_hook(partial(self._after, name))

    @torch.no_grad()
    def run(self, images: Tensor, backend: str) -> None:
        """One forward.

        Raises:
            ValueError: it fails, or gives something else than the forward before.
        """
        self.backend, self.calls = backend, Counter()
        self.running.clear()
        with visible(self.cells, backend) as sparse:
            try:
                self.net(sparse.enter(images))
            except _Differs as difference:
                raise ValueError(str(difference)) from None
            except (ValueError, RuntimeError, IndexError, NotImplementedError) as error:
                name = self.running[-1] if self.running else ""
                raise ValueError(f"{self._describe(name)} cannot run on visible cells ({backend}): {error}") from error

    def _before(self, name: str, module: nn.Module, inputs: tuple) -> None:
        self.running.append(name)

    def _after(self, name: str, module: nn.Module, inputs: tuple, outputs: object) -> None:
        self.running.pop()
        for place, value in enumerate(_maps(outputs)):
            key = name, self.calls[name], place
            if hasattr(value, "zero_padding"):
                continue  # the backends pad at different moments
            if self.backend != "masked":
                self.rows[key] = value.clone()  # an operation in place may follow
            elif not self._equal(value, self.rows.pop(key)):
                parent = f", in {self._describe(name.rpartition('.')[0])}" if name else ""
                raise _Differs(
                    f"the backends differ first in what {self._describe(name)} gives{parent}: something there mixes "
                    f"positions without knowing of the mask. Choose a student without it."
                )
        self.calls[name] += 1

    def _equal(self, value: Tensor, rows: Tensor) -> bool:
        """Whether the visible cells of a map (B, C, H, W) or (B, H, W, C), or single values of images, are `rows`."""
        (gh, gw), (_, channels, height, width) = self.cells.grid, rows.shape
        if value.shape[1:] == rows.shape[1:] and value.shape[2:] == (1, 1):
            value = value[self.cells.image_index]
        elif value.shape[1:] == (channels, height * gh, width * gw):
            value = self.cells.gather(value)
        elif value.shape[1:] == (channels * gh, height * gw, width):
            value = self.cells.gather(value.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        else:
            return False
        return bool((value - rows).abs().max() <= 1e-6 * rows.abs().max().clamp(min=1e-30))

    def _describe(self, name: str) -> str:
        kind = stock_class(module) if isinstance(module := self.modules[name], SparseLayer) else type(module)
        return f"module {name!r} ({kind.__name__})" if name else f"the forward of {kind.__name__}"


class _Differs(Exception):
    """The backends give different values."""


def _maps(values: object) -> Iterator[Tensor]:
    """The maps among a module's outputs, which may be nested."""
    if isinstance(values, Tensor):
        if values.dim() == 4:
            yield values
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _maps(value)
