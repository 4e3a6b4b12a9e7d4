"""Output for people: progress bars and tables on a terminal, plain lines elsewhere.

Text is printed as it is: neither the markup of rich nor control characters in it are interpreted.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO, TypeVar

from prunekit.text import visible

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
OnProgress = Callable[[str, int, int], None]  # gets a label, the items done, and their total
DrawTable = Callable[[str, Sequence[str], Iterable[Sequence[str]]], None]
_LINE_EVERY = 20.0  # seconds between plain progress lines where there is no terminal
_BAR_AFTER = 1.0  # seconds before a bar appears; a shorter one would only flicker
_log: ContextVar[TextIO | None] = ContextVar("log", default=None)
_on_progress: ContextVar[OnProgress | None] = ContextVar("on_progress", default=None)


def say(line: str) -> None:
    """Print one line to standard output."""
    print(visible(line), file=_log.get(), flush=True)


def complain(line: str) -> None:
    """Print one line to standard error."""
    print(visible(line), file=_log.get() or sys.stderr, flush=True)


@contextmanager
def redirect_output(log: TextIO, on_progress: OnProgress) -> Iterator[None]:
    """Send the lines of this thread to a file, and its progress to `on_progress`."""
    tokens = _log.set(log), _on_progress.set(on_progress)
    try:
        yield
    finally:
        _log.reset(tokens[0])
        _on_progress.reset(tokens[1])


@contextmanager
def silence() -> Iterator[None]:
    """Print neither lines nor progress; warnings and errors go on to standard error."""
    token = _on_progress.set(lambda label, done, total: None)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        _on_progress.reset(token)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items and show the progress: a bar on a terminal, elsewhere a line at times."""
    if (on_progress := _on_progress.get()) is not None:
        return _reported(items, label, total, on_progress)
    return _bar(items, label, total) if sys.stderr.isatty() else _lines(items, label, total)


def set_status(label: str) -> None:
    """Send a label to `on_progress` of a redirected output; print nothing elsewhere."""
    if (on_progress := _on_progress.get()) is not None:
        on_progress(label, 0, 1)


@contextmanager
def live_table() -> Iterator[DrawTable]:
    """Yield a function like `table` that replaces the table it printed before, on a terminal."""
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:

        def draw(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
            live.update(_grid(title, [tuple(columns), *map(tuple, lines)]), refresh=True)

        yield draw


def table(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """Print a table with the first column left-aligned and the others right-aligned.

    No cell is cut. A table wider than the terminal is transposed where it fits then; otherwise the
    terminal wraps its lines.
    """
    from rich.console import Console

    cells = [tuple(columns), *map(tuple, lines)]
    grid, transposed = _grid(title, cells), _grid(title, list(zip(*cells, strict=True)))
    console = Console(file=_log.get())
    wide = Console(width=400, height=100)
    width = wide.measure(grid).maximum
    if console.is_terminal and width > console.width >= wide.measure(transposed).maximum:
        grid = transposed
    out = Console(file=_log.get(), width=max(width, console.width), height=100)
    out.print(grid, crop=False)


def _grid(title: str, lines: Sequence[Sequence[str]]) -> Table:
    """Return a table of rich; the first line holds the names of the columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def cell(text: str) -> Text:
        return Text(visible(text))

    heading = Text(visible(title), style="bold")
    grid = Table(title=heading, box=box.SIMPLE_HEAD, title_justify="left")
    for index, column in enumerate(lines[0]):
        grid.add_column(cell(column), justify="left" if index == 0 else "right", no_wrap=True)
    for line in lines[1:]:
        grid.add_row(*map(cell, line))
    return grid


def _bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield the items, with a bar once they take longer than a second."""
    stream = iter(items)
    start, done = time.monotonic(), 0
    while time.monotonic() - start < _BAR_AFTER:
        try:
            item = next(stream)
        except StopIteration:
            return
        yield item
        done += 1
    yield from _rich_bar(stream, label, total, done)


def _rich_bar(items: Iterable[T], label: str, total: int, done: int) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        yield from bar.track(items, total=total, completed=done, description=visible(label))


def _reported(items: Iterable[T], label: str, total: int, on_progress: OnProgress) -> Iterator[T]:
    on_progress(label, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        on_progress(label, done, total)


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    printed = time.monotonic()
    for index, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - printed > _LINE_EVERY and index < total:
            printed = time.monotonic()
            complain(f"{label}: {index}/{total}")
