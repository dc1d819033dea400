"""Sliding windows on cells: where they read along an axis, and who reads a position."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from .masking import Axis


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

    def window_reads(self, axis: int) -> list[int]:
        """Where the window of a cell reads along an axis, in positions from the cell's first on."""
        return [position - self.padding[axis] for position in range(self.window[axis])]

    def tap_reads(self, axis: int) -> list[int]:
        """Where the kernel taps of each output of a cell read along an axis, output by output."""
        return [
            output * self.stride[axis] - self.padding[axis] + tap * self.dilation[axis]
            for output in range(self.out_block[axis])
            for tap in range(self.kernel[axis])
        ]

    def tap_outputs(self, axis: int) -> list[int | None]:
        """Which output each kernel tap of each position of a cell goes to, position by position; None: to none."""
        padded = (
            position + self.padding[axis] - tap * self.dilation[axis]
            for position in range(self.block[axis])
            for tap in range(self.kernel[axis])
        )
        stride = self.stride[axis]
        return [None if place % stride else place // stride for place in padded]


def reading(reads: Iterable[int | None], block: int, pitch: int = 1) -> Axis:
    """Reads along an axis, in positions from a cell's first on, as cells of `block` positions, `pitch` apart."""
    return tuple(None if read is None else (read // block, read % block * pitch) for read in reads)


def readers(reads: Iterable[int], block: int, places: Iterable[int]) -> tuple[Axis, int]:
    """The inverse of reads along an axis: who reads each position of a block, where reader i stands at `places[i]`.

    Returns:
        The readers of each position, filled up to the same number with None, and that number.
    """
    of_position: list[list[tuple[int, int] | None]] = [[] for _ in range(block)]
    for read, place in zip(reads, places):
        of_position[read % block].append((-(read // block), place))
    most = max(map(len, of_position))
    return tuple(reader for found in of_position for reader in (*found, *[None] * (most - len(found)))), most
