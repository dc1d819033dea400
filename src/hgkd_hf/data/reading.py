"""Reading a stream that may stall or die: again, after a pause, from where it was, but not for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Full, Queue
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

# `datasets` itself tries a lost connection again for up to two minutes, which is no stall yet.
STALL_SECONDS = 180.0
PAUSES = (1.0, 4.0, 16.0, 64.0)  # seconds before each new try; rows that arrive start the count anew
READ_AHEAD = 8  # rows

Row, Place = TypeVar("Row"), TypeVar("Place")


class StreamError(RuntimeError):
    """A stream that stays dead after every try; the message is one sentence."""


def read_patiently(
    read: Callable[[Place], Iterator[tuple[Row, Place]]], place: Place, name: str, ahead: int = READ_AHEAD
) -> Iterator[tuple[Row, Place]]:
    """The rows of a stream, in order and each once, through stalls and failures.

    After a failure, or when nothing comes for `STALL_SECONDS`, the stream is opened anew after the last row.

    Args:
        read: rows from a place on, each with the place after it.
        place: where to begin.
        name: what messages call the stream.
        ahead: rows that are read before they are wanted.

    Raises:
        StreamError: it failed at the same row after each of `PAUSES`.
    """
    given = failures = 0
    while True:
        arrived: Queue = Queue(maxsize=ahead)
        closed = threading.Event()
        # A read that hangs cannot be ended; its thread is left behind and dies with the process.
        arguments = (read, place, arrived, closed)
        threading.Thread(target=_fill, args=arguments, name=f"stream of {name}", daemon=True).start()
        try:
            while True:
                try:
                    row, problem = arrived.get(timeout=STALL_SECONDS)
                except Empty:
                    problem = f"nothing came for {STALL_SECONDS:g} s"
                if problem is not None:
                    break
                if row is None:
                    return
                given, failures, place = given + 1, 0, row[1]
                yield row
        finally:
            closed.set()
        reason = " ".join(str(problem).split()).rstrip(".") or type(problem).__name__
        if failures == len(PAUSES):
            raise StreamError(
                f"the stream of {name!r} failed {failures + 1} times in a row after {given} rows (the last: "
                f"{reason}): check the network and the files, and continue with --resume."
            )
        logger.warning("Stream of %r, after %d rows: %s; trying again in %g s.", name, given, reason, PAUSES[failures])
        time.sleep(PAUSES[failures])
        failures += 1


def _fill(
    read: Callable[[Place], Iterator[tuple[Row, Place]]], place: Place, arrived: Queue, closed: threading.Event
) -> None:
    """Put (row and place, None) for each row, then Nones; an error comes last."""

    def put(*entry: Any) -> bool:
        while not closed.is_set():
            try:
                arrived.put(entry, timeout=0.5)
            except Full:
                continue
            return True
        return False

    try:
        for row in read(place):
            if not put(row, None):
                return
        put(None, None)
    except Exception as error:  # whatever it is, it must reach the reader
        put(None, error)
