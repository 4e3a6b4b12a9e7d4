"""A sweep as a person sees it: one table while jobs run, one of their results in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from prunekit import console
from prunekit.errors import SweepError
from prunekit.runs.board import DONE, FAILED, RUNNING, Board, Status

_BOARD = "PRUNEKIT_BOARD"  # where processes that a launcher starts find the board
_EVERY = 0.5  # seconds between two looks at it


def board() -> Board | None:
    """The board of the sweep that this process is part of."""
    place = os.environ.get(_BOARD)
    return Board(Path(place)) if place and Path(place).is_dir() else None


class Sweep(Callback):
    """Shows a sweep while it runs; Hydra calls it where the command was given."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Put up the board before any job starts."""
        root = Path(config.hydra.sweep.dir).resolve()
        root.mkdir(parents=True, exist_ok=True)
        _open(Board(Path(tempfile.mkdtemp(prefix=".sweep-", dir=root))), expected(config))


def expected(config: Any) -> int | None:
    """How many jobs a sweep will have; None where its sweeper alone knows."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    if not str(sweeper._target_).endswith(".BasicSweeper"):
        return None
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    count = 1
    for override in OverridesParser.create().parse_overrides(
        [*params, *config.hydra.overrides.task]
    ):
        if override.is_discrete_sweep():
            count *= len(list(override.sweep_string_iterator()))
    return count


_shown: list[Viewer] = []


def _open(where: Board, total: int | None) -> None:
    os.environ[_BOARD] = str(where.path)
    _shown.append(Viewer(where, total))
    _shown[-1].start()


def close() -> dict[int, Status]:
    """End the table of the sweep that was shown, if any; returns what its jobs said last."""
    if not _shown:
        return {}
    viewer = _shown.pop()
    viewer.over.set()
    viewer.join()
    os.environ.pop(_BOARD, None)
    found = viewer.board.read()
    shutil.rmtree(viewer.board.path, ignore_errors=True)
    return found


def conclude(said: Mapping[int, Status]) -> None:
    """Print the results of all jobs; SweepError names those that failed."""
    from prunekit.runs.tables import collect, show, summary

    done = [status.place for status in said.values() if status.state == DONE]
    if done and any(Path(place).rglob("report.json") for place in done):
        show(summary(collect(done)), "sweep")
    bad = [status for status in said.values() if status.state != DONE]
    for status in bad:
        console.complain(f"prunekit: {status.place}: {status.error or _LOST}")
    if bad:
        names = ", ".join(status.place for status in bad)
        raise SweepError(f"{len(bad)} of {len(said)} jobs failed: {names}; {_AGAIN}")


_LOST = "ended without a word (killed, or out of memory)"
_AGAIN = "the same command does what is missing; what each printed is in its log.txt"


class Viewer(threading.Thread):
    """Looks at the board and draws it: a table on a terminal, elsewhere a line a change."""

    def __init__(self, where: Board, total: int | None) -> None:
        super().__init__(daemon=True)
        self.board, self.total = where, total
        self.over = threading.Event()
        self._told: dict[int, tuple[str, str]] = {}

    def run(self) -> None:
        """Until it is over."""
        shown = console.redrawn() if sys.stdout.isatty() else contextlib.nullcontext(None)
        with shown as draw:
            while not self.over.wait(_EVERY):
                self._look(draw)
            self._look(draw)

    def _look(self, draw: Any) -> None:
        jobs = self.board.read()
        if draw is None:
            self._say(jobs)
        else:
            draw(headline(jobs, self.total), COLUMNS, rows(jobs))

    def _say(self, jobs: Mapping[int, Status]) -> None:
        for number, status in jobs.items():
            news = (status.stage, status.state)
            if self._told.get(number) != news:
                self._told[number] = news
                console.say("  ".join(filter(None, _row(number, status, best(jobs)))))


COLUMNS = ("job", "settings", "state", "stage", "step", "top-1 %", "by validation")


def headline(jobs: Mapping[int, Status], total: int | None) -> str:
    """How many jobs are done, at work, failed."""
    states = [status.state for status in jobs.values()]
    of = f" of {total}" if total is not None else ""
    failed = f", {states.count(FAILED)} failed" if FAILED in states else ""
    return f"{states.count(DONE)}{of} done, {states.count(RUNNING)} at work{failed}"


def rows(jobs: Mapping[int, Status]) -> list[list[str]]:
    """A row a job."""
    return [_row(number, status, best(jobs)) for number, status in jobs.items()]


def best(jobs: Mapping[int, Status]) -> int | None:
    """The number of the finished job that is most accurate on images held out."""
    done = {n: s.val_top1 for n, s in jobs.items() if s.state == DONE and s.val_top1 is not None}
    return max(done, key=lambda number: done[number]) if done else None


def _row(number: int, status: Status, first: int | None) -> list[str]:
    return [
        f"#{number}",
        Path(status.place).name,
        status.state,
        status.stage,
        status.error if status.state == FAILED else status.step,
        "" if status.top1 is None else f"{status.top1:.2f}",
        "best" if number == first else "",
    ]
