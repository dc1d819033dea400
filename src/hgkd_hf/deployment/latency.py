"""How long programs take, measured in turns so that a busy machine is unfair to none."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def median_latencies(programs: Mapping[str, Callable[[], Any]], rounds: int = 30, warmup: int = 3) -> dict[str, float]:
    """The median time of each program in milliseconds.

    Args:
        programs: by name, what is called without arguments.
        rounds: each program runs once a round.
        warmup: rounds that are not counted.

    Raises:
        ValueError: there is no round to count.
    """
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: at least 1 is needed (--rounds).")
    times: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(warmup + rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            program()
            if turn >= warmup:
                times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
