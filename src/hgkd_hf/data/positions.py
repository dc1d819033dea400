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

_MOST_ROWS = 2**24  # that can be shuffled together


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
        if not all(map(_is_count, values)) or not (self.step and self.parts):
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

    def check(self, shards: int) -> None:
        """Make sure that it is a position in a stream of so many shards.

        Raises:
            ValueError: it is not.
        """
        pieces = [*self.pieces, *(piece for window in self.windows for piece in window.pieces)]
        numbers = [self.epoch, *(number for window in self.windows for number in (window.rows, window.given))]
        if not all(map(_is_count, numbers)):
            raise ValueError(f"{numbers} are not all whole numbers.")
        if any(piece.stop > shards * piece.parts for piece in pieces):
            raise ValueError(f"there are only {shards} shards.")
        if not all(0 <= window.given < window.rows <= _MOST_ROWS for window in self.windows):
            raise ValueError("a window has no such rows.")

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
        return cls(values["epoch"], _pieces(values["pieces"]), tuple(windows))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _pieces(entries: list[dict[str, int]]) -> tuple[Piece, ...]:
    return tuple(Piece(**entry) for entry in entries)


def share(epoch: int, reader: int, readers: int, shards: int) -> Piece:
    """What one of `readers` readers reads in a pass over `shards` shards."""
    parts = ceil(readers / shards)
    return Piece(epoch, (reader - epoch) % readers, shards * parts, readers, parts)


def share_out(positions: Sequence[Position], reader: int, readers: int, shards: int) -> Position:
    """Where one of `readers` readers begins when they take over from others, which were at `positions`.

    All that those had still to read before the latest pass that one of them has begun is shared out evenly: whole
    shards, as many to each; the others, and those that were begun, by their rows; windows as they are.

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
    mine = []
    for piece in left:
        rest = piece
        if piece.row and piece.start < piece.stop:
            mine.append(_by_rows(piece, reader, readers, shards))
            rest = piece.after_first()
        places = range(rest.start, rest.stop, rest.step)
        whole = len(places) // readers * readers
        own = places[:whole][reader::readers]
        mine.append(replace(rest, start=own.start, stop=min(own.stop, rest.stop), step=own.step))
        mine += [_by_rows(replace(rest, start=place), reader, readers, shards) for place in places[whole:]]
    return Position(epoch, tuple(piece for piece in mine if piece.start < piece.stop), tuple(windows[reader::readers]))


def _by_rows(piece: Piece, reader: int, readers: int, shards: int) -> Piece:
    """Of a piece's first shard, every `readers`th of its rows."""
    start = piece.start + reader * piece.parts * shards
    return Piece(piece.epoch, start, start + 1, 1, piece.parts * readers, piece.row)
