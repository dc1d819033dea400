"""Where a reader of a stream is: which shards it has still to read in a pass, and from which row on.

A pass goes through all shards (files) in an order of its own. Of `readers` readers, each takes every `readers`th of
them, and the next pass begins with the next reader: so all read as much in the long run, however many rows a shard
has. Where there are fewer shards than readers, a shard is shared by its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any


@dataclass(frozen=True)
class Piece:
    """Some of the shards of a pass: the `start`th in its order, and every `step`th after it, below `stop`.

    Attributes:
        epoch: the pass.
        parts: into so many parts each shard is divided; part p has the rows p, p + parts, ... Places from the number
            of shards on are the second parts, and so on.
        row: of the first shard, this row is the next.
    """

    epoch: int
    start: int
    stop: int
    step: int
    parts: int = 1
    row: int = 0

    def __post_init__(self) -> None:
        values = [self.epoch, self.start, self.stop, self.step, self.parts, self.row]
        if not all(type(value) is int and 0 <= value < 2**53 for value in values) or not (self.step and self.parts):
            raise ValueError(f"{self} is no piece of a stream.")

    def after_first(self) -> Piece:
        """All but the first shard."""
        return replace(self, start=self.start + self.step, row=0)


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together: `rows` from the beginning of `pieces` on, of which `given` were given."""

    pieces: tuple[Piece, ...]
    rows: int
    given: int


@dataclass(frozen=True)
class Position:
    """A place in an endless stream.

    Attributes:
        epoch: the next pass to begin.
        pieces: what is left to read before it.
        windows: what was read, but not given yet.
    """

    epoch: int = 0
    pieces: tuple[Piece, ...] = ()
    windows: tuple[Window, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The position as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """What `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is no position.
        """
        windows = [Window(_pieces(entry["pieces"]), entry["rows"], entry["given"]) for entry in values["windows"]]
        return cls(int(values["epoch"]), _pieces(values["pieces"]), tuple(windows))


def _pieces(entries: list[dict[str, int]]) -> tuple[Piece, ...]:
    return tuple(Piece(**entry) for entry in entries)


def share(epoch: int, reader: int, readers: int, shards: int) -> Piece:
    """What one of `readers` readers reads in a pass over `shards` shards."""
    parts = ceil(readers / shards)
    return Piece(epoch, (reader - epoch) % readers, shards * parts, readers, parts)


def share_out(positions: Sequence[Position], reader: int, readers: int, shards: int) -> Position:
    """Where one of `readers` readers begins when they take over from others, which were at `positions`.

    All that those had still to read before the latest pass that one of them has begun is shared out: shards that were
    begun, and windows, as they are.

    Args:
        positions: of the earlier readers, in their order.
        reader: the one that asks.
        readers: their number.
        shards: of the stream.
    """
    epoch = max(position.epoch for position in positions)
    windows = [window for position in positions for window in position.windows]
    left = [piece for position in positions for piece in position.pieces]
    for number, position in enumerate(positions):
        left += [share(missed, number, len(positions), shards) for missed in range(position.epoch, epoch)]
    begun = [replace(piece, stop=piece.start + 1) for piece in left if piece.row and piece.start < piece.stop]
    whole = [piece.after_first() if piece.row else piece for piece in left]
    shares = [
        replace(piece, start=piece.start + (reader + number) % readers * piece.step, step=piece.step * readers)
        for number, piece in enumerate(whole)
    ]
    mine = [*begun[reader::readers], *(piece for piece in shares if piece.start < piece.stop)]
    return Position(epoch, tuple(mine), tuple(windows[reader::readers]))
