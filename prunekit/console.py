"""Everything that prunekit shows a person: progress bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
_LINE_EVERY = 20.0  # seconds between plain progress lines where there is no terminal


def say(line: str) -> None:
    """Print one line to standard output."""
    print(line, flush=True)


def complain(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def track(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Pass `items` on and show how far it is: a bar on a terminal, else a line now and then."""
    return _bar(items, label, total) if sys.stderr.isatty() else _lines(items, label, total)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; the first column is left-aligned, numbers are right-aligned."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console = Console()
    if not console.is_terminal:  # a pipe or a file: never cut a table to 80 columns
        console = Console(width=400)
    console.print(shown, crop=False)


def _bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
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
        yield from bar.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    last = time.monotonic()
    for index, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > _LINE_EVERY and index < total:
            last = time.monotonic()
            complain(f"{label}: {index}/{total}")
