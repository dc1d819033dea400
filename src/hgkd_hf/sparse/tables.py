"""The index tables of one mask, each built once and used by all layers in both passes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache, wraps
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .masking import VisibleCells
from .windows import Geometry, readers, reading

Table = TypeVar("Table")


def pixels(x: Tensor) -> Tensor:
    """Rows (V, C, b, b) as (V*b*b, C), a view when they are channels last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def gather_sum(rows: Tensor, index: Tensor, start: Tensor) -> Tensor:
    """Sums (m, C) of rows (n, C): the i-th is that of `index[start[i]:start[i + 1]]`. One kernel, in a fixed order."""
    return F.embedding_bag(index, rows, start, mode="sum")


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _absent(channels: int, dtype: torch.dtype, device: torch.device, outside: float) -> Tensor:
    """(2, C): what is read in hidden cells, and outside the image."""
    return torch.tensor([[0.0], [outside]], dtype=dtype, device=device).expand(2, channels).contiguous()


def with_absent(rows: Tensor, outside: float = 0.0) -> Tensor:
    """Rows (n, C) and two more, which are read where nothing is: zeros, then `outside`."""
    return torch.cat([rows, _absent(rows.shape[1], rows.dtype, rows.device, outside)])


class Readers(NamedTuple):
    """Who reads each position: `gather_sum`'s index and starts, over the readers' rows and one row of zeros."""

    index: Tensor
    start: Tensor

    @classmethod
    def of(cls, table: Tensor) -> Readers:
        """The readers of a table (positions, most readers)."""
        index = table.flatten()
        return cls(index, torch.arange(0, len(index), table.shape[1], dtype=index.dtype, device=index.device))

    def sum(self, rows: Tensor) -> Tensor:
        """Readers' rows (n, C) to the sums (m, C) of what the readers of each position have."""
        return gather_sum(with_absent(rows), *self)


class Pairs:
    """The (input, output) positions that the taps of a kernel join, tap by tap: what exists, and nothing else.

    How many there are depends on the mask, so that these tables are for the CPU alone.

    Args:
        patches: (outputs, taps), the input that each tap of each output reads, `inputs` where there is none.
        inputs: the number of inputs.

    Attributes:
        inputs, outputs: (pairs,).
        counts: the number of pairs of each tap.
    """

    def __init__(self, patches: Tensor, inputs: int):
        self._size, patches = (inputs, len(patches)), patches.t()
        exists = patches < inputs
        _, self.outputs = exists.nonzero(as_tuple=True)
        self.inputs = patches[exists]
        self.counts: list[int] = exists.sum(1).tolist()

    @cached_property
    def of_input(self) -> tuple[Tensor, Tensor]:
        """The pairs of each input, for `gather_sum`."""
        return self._sorted(self.inputs, self._size[0])

    @cached_property
    def of_output(self) -> tuple[Tensor, Tensor]:
        """The pairs of each output, likewise."""
        return self._sorted(self.outputs, self._size[1])

    @staticmethod
    def _sorted(position: Tensor, count: int) -> tuple[Tensor, Tensor]:
        ordered, order = position.sort(stable=True)
        return order, torch.searchsorted(ordered, torch.arange(count, dtype=ordered.dtype))


class Halo:
    """Reads the windows of cells.

    Args:
        index: (V * window,) int32, the position that each entry reads, `count` where hidden, one more where outside.
        window: its side.
        count: the number of positions.
        static: read what is not there from rows that are appended, at the cost of a copy. Otherwise it is filled in
            afterwards, for which it is listed: an accelerator would have to be waited for.
    """

    def __init__(self, index: Tensor, window: tuple[int, int], count: int, static: bool):
        self.window, self.static, self.count = window, static, count
        self.index = index if static else index.clamp(max=count - 1)
        self._unclamped = index

    def read(self, x: Tensor, outside: float = 0.0) -> Tensor:
        """Rows (V, C, b, b) to windows (V, C, *window), channels last."""
        if self.static:
            rows = with_absent(pixels(x), outside).index_select(0, self.index)
        else:
            rows = pixels(x).index_select(0, self.index)
            rows.index_fill_(0, self._absent, 0)
            if outside:
                rows.index_fill_(0, self._outside, outside)
        return rows.view(-1, *self.window, x.shape[1]).permute(0, 3, 1, 2)

    @cached_property
    def _absent(self) -> Tensor:
        return (self._unclamped >= self.count).nonzero()[:, 0]

    @cached_property
    def _outside(self) -> Tensor:
        return (self._unclamped > self.count).nonzero()[:, 0]


def once(make: Callable[[IndexTables, Geometry], Table]) -> Callable[[IndexTables, Geometry], Table]:
    """Keep what a method makes for a geometry."""

    @wraps(make)
    def get(self: IndexTables, shape: Geometry) -> Table:
        key = make.__name__, shape
        if key not in self._made:
            self._made[key] = make(self, shape)
        return self._made[key]

    return get


class IndexTables:
    """The tables of a mask, made when they are asked for.

    Args:
        cells: the mask.
        static: whether all shapes shall follow from the number of visible cells alone, and no value be looked at.
    """

    def __init__(self, cells: VisibleCells, static: bool):
        self.cells, self.static = cells, static
        self._made: dict[tuple[str, Geometry], object] = {}

    @once
    def halo(self, shape: Geometry) -> Halo:
        """Where windows read, all that is not there alike."""
        return self._halo(shape, outside_apart=False)

    @once
    def halo_of_maximum(self, shape: Geometry) -> Halo:
        """Where windows read, what is outside the image told from hidden cells."""
        return self._halo(shape, outside_apart=True)

    def _halo(self, shape: Geometry, outside_apart: bool) -> Halo:
        (bh, bw), (vertical, horizontal) = shape.block, map(shape.window_reads, (0, 1))
        axes = reading(vertical, bh, bw), reading(horizontal, bw)
        index = self.cells.index_table(*axes, bh * bw, outside_apart=outside_apart).flatten()
        return Halo(index, shape.window, len(self.cells) * bh * bw, self.static)

    @once
    def halo_readers(self, shape: Geometry) -> Readers:
        """The entries of windows (V * window, C) that read each position."""
        (height, width), (bh, bw) = shape.window, shape.block
        vertical, rows = readers(shape.window_reads(0), bh, range(0, height * width, width))
        horizontal, columns = readers(shape.window_reads(1), bw, range(width))
        return Readers.of(self.cells.index_table(vertical, horizontal, height * width, (rows, columns)))

    @once
    def patches(self, shape: Geometry) -> Tensor:
        """(outputs, taps) int32: the position that each kernel tap of each output reads, their number where none."""
        (bh, bw), (vertical, horizontal) = shape.block, map(shape.tap_reads, (0, 1))
        axes = reading(vertical, bh, bw), reading(horizontal, bw)
        return self.cells.index_table(*axes, bh * bw, shape.kernel)

    @once
    def tap_outputs(self, shape: Geometry) -> Tensor:
        """(positions, taps) int32: the output that each tap of each position goes to, their number where none."""
        (height, width), (vertical, horizontal) = shape.out_block, map(shape.tap_outputs, (0, 1))
        axes = reading(vertical, height, width), reading(horizontal, width)
        return self.cells.index_table(*axes, height * width, shape.kernel)

    @once
    def patch_readers(self, shape: Geometry) -> Readers:
        """The entries of patches (outputs * taps, C) that read each position."""
        (height, width), (kh, kw), (bh, bw) = shape.out_block, shape.kernel, shape.block
        taps = kh * kw
        down = (row * width * taps + ky * kw for row in range(height) for ky in range(kh))
        right = (column * taps + kx for column in range(width) for kx in range(kw))
        vertical, rows = readers(shape.tap_reads(0), bh, down)
        horizontal, columns = readers(shape.tap_reads(1), bw, right)
        return Readers.of(self.cells.index_table(vertical, horizontal, height * width * taps, (rows, columns)))

    @once
    def pairs(self, shape: Geometry) -> Pairs:
        """The pairs of positions that kernel taps join; not where shapes shall be static."""
        return Pairs(self.patches(shape), len(self.cells) * shape.block[0] * shape.block[1])
