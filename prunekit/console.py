"""Everything that prunekit shows a person: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
Watch = Callable[[str, int, int], None]  # is told a label, how many items are done, of how many
_LINE_EVERY = 20.0  # seconds between plain progress lines where there is no terminal
_BAR_AFTER = 1.0  # seconds before a bar appears: what is over sooner would only flicker
_log: ContextVar[TextIO | None] = ContextVar("log", default=None)
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def say(line: str) -> None:
    """Print one line to standard output."""
    print(line, file=_log.get(), flush=True)


def complain(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=_log.get() or sys.stderr, flush=True)


@contextmanager
def aside(log: TextIO, watch: Watch) -> Iterator[None]:
    """Inside it, lines go to a file and `watch` is told how far work is; other threads print on."""
    tokens = _log.set(log), _watch.set(watch)
    try:
        yield
    finally:
        _log.reset(tokens[0])
        _watch.reset(tokens[1])


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Pass `items` on and show how far it is: a bar on a terminal, else a line now and then."""
    if (watch := _watch.get()) is not None:
        return _watched(items, label, total, watch)
    return _bar(items, label, total) if sys.stderr.isatty() else _lines(items, label, total)


def doing(label: str) -> None:
    """Say what is going on where somebody watches, and nothing elsewhere."""
    if (watch := _watch.get()) is not None:
        watch(label, 0, 1)


@contextmanager
def redrawn() -> Iterator[Callable[[str, Sequence[str], Iterable[Sequence[str]]], None]]:
    """A function like `table` that draws over what it drew before, on a terminal."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:

        def draw(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
            live.update(_grid(title, [tuple(columns), *map(tuple, rows)]), refresh=True)

        yield draw


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is left-aligned, numbers are right-aligned.

    Nothing is ever cut: a table wider than the terminal is turned, rows for columns, if it fits
    then, and broken by the terminal otherwise.
    """
    from rich.console import Console

    lines = [tuple(columns), *map(tuple, rows)]
    shown, turned = _grid(title, lines), _grid(title, list(zip(*lines, strict=True)))
    console = Console(file=_log.get())
    wide = Console(width=400, height=100)
    whole = wide.measure(shown).maximum
    if console.is_terminal and whole > console.width >= wide.measure(turned).maximum:
        shown = turned
    out = Console(file=_log.get(), width=max(whole, console.width), height=100)
    out.print(shown, crop=False)


def _grid(title: str, lines: Sequence[Sequence[str]]) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(lines[0]):
        grid.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines[1:]:
        grid.add_row(*line)
    return grid


def _bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """The items; a bar appears when they take long."""
    stream = iter(items)
    start, done = time.monotonic(), 0
    while time.monotonic() - start < _BAR_AFTER:
        try:
            item = next(stream)
        except StopIteration:
            return
        yield item
        done += 1
    yield from _drawn(stream, label, total, done)


def _drawn(items: Iterable[T], label: str, total: int, done: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        yield from bar.track(items, total=total, completed=done, description=label)


def _watched(items: Iterable[T], label: str, total: int, watch: Watch) -> Iterator[T]:
    watch(label, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        watch(label, done, total)


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for index, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > _LINE_EVERY and index < total:
            last = time.monotonic()
            complain(f"{label}: {index}/{total}")
