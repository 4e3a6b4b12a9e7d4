"""Rows of the suites of `make bench`: what was measured, and whether it stays within its bound."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

Row = dict[str, str | float]


def row(what: str, value: float, bound: str = "-", holds: bool = True) -> Row:
    """Return one line of the result; without a bound it holds."""
    return {
        "what": what,
        "ratio": round(value, 3),
        "bound": bound,
        "holds": "yes" if holds else "no",
    }


def below(what: str, value: float, most: float) -> Row:
    """Return a line whose value must be below a bound."""
    return row(what, value, f"< {most:g}", value < most)


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """Return the median over rounds of seconds of `first` over those of `second`, in turns."""
    first(), second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(rounds))


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long something takes."""
    start = clock()
    work()
    return clock() - start
