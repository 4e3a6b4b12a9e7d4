"""A sweep as a person sees it: one table while jobs run, one of their results in the end."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from prunekit import console
from prunekit.errors import SweepError
from prunekit.runs.job_status import DONE, FAILED, FOLDER, RUNNING, Board, Status, left, owner

_BOARD = "PRUNEKIT_BOARD"  # where processes that a launcher starts find the board
_ROOT = "dataset.root"
_EVERY = 0.5  # seconds between two looks at it


def board() -> Board | None:
    """The board of the sweep that this process is part of."""
    place = os.environ.get(_BOARD)
    return Board(Path(place)) if place and Path(place).is_dir() else None


@cache
def follow(place: Path) -> None:
    """End this process, which a launcher started, when the sweep with this board is gone.

    Killed alone, a sweep would leave its jobs to work for nobody. Processes that are no children of
    the sweep, as on other machines, are left to what started them.
    """
    parent = os.getppid()
    if parent != owner(place):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_EVERY)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Sweep(Callback):
    """Shows a sweep while it runs; Hydra calls it where the command was given."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Put up the board before any job starts."""
        root = Path(config.hydra.sweep.dir).resolve()
        _clear(root)
        place = root / f"{FOLDER}{os.getpid()}"
        place.mkdir(parents=True, exist_ok=True)
        swept = Swept.of(config)
        _name_roots(config, swept.keys)
        _open(Board(place), swept)


def _name_roots(config: Any, keys: frozenset[str]) -> None:
    """Have `dataset.root` in the names of jobs that differ in it; alone it is part of no name.

    Jobs are composed anew, wherever they run, from what Hydra was told of itself.
    """
    if _ROOT in keys:
        left_out = config.hydra.job.config.override_dirname.exclude_keys
        kept = ",".join(key for key in left_out if key != _ROOT)
        line = f"hydra.job.config.override_dirname.exclude_keys=[{kept}]"
        config.hydra.overrides.hydra.append(line)


def _clear(root: Path) -> None:
    """Remove the boards of processes of this machine that were killed."""
    for place in filter(left, root.glob(f"{FOLDER}*")):
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True)
class Swept:
    """What a sweep changes from job to job, and how many jobs that makes, where it is known."""

    keys: frozenset[str]
    count: int | None

    @classmethod
    def of(cls, config: Any) -> Swept:
        """Read it from what Hydra was told; a search says itself how many trials it makes."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        sweeper = config.hydra.sweeper
        given = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        given += config.hydra.overrides.task
        ranges = [
            o for o in OverridesParser.create().parse_overrides(given) if o.is_sweep_override()
        ]
        keys = frozenset(override.get_key_element() for override in ranges)
        if not all(override.is_discrete_sweep() for override in ranges) or "n_trials" in sweeper:
            return cls(keys, sweeper.get("n_trials"))
        return cls(keys, math.prod(len(list(o.sweep_string_iterator())) for o in ranges))

    def told(self, settings: Sequence[str]) -> str:
        """The settings of a job that others do not share; all where that is not known."""
        own = [setting for setting in settings if setting.partition("=")[0] in self.keys]
        return ", ".join(own or settings)


_shown: list[Viewer] = []


def _open(where: Board, swept: Swept) -> None:
    os.environ[_BOARD] = str(where.path)
    _shown.append(Viewer(where, swept))
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
    """Print the results of all jobs and write their page; SweepError names those that failed."""
    from prunekit.reporting.command import main as report

    done = [status.place for status in said.values() if status.state == DONE]
    done = [place for place in done if any(Path(place).glob("*/report.json"))]
    if done:
        report([*done, "--html", str(Path(os.path.commonpath(done)) / "report.html")])
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

    def __init__(self, where: Board, swept: Swept) -> None:
        super().__init__(daemon=True)
        self.board, self.swept = where, swept
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
            draw(headline(jobs, self.swept.count), COLUMNS, rows(jobs, self.swept))

    def _say(self, jobs: Mapping[int, Status]) -> None:
        for number, status in jobs.items():
            news = (status.stage, status.state)
            if self._told.get(number) != news:
                self._told[number] = news
                console.say("  ".join(filter(None, _row(number, status, self.swept, best(jobs)))))


COLUMNS = ("job", "settings", "state", "stage", "step", "top-1 %", "by validation")


def headline(jobs: Mapping[int, Status], total: int | None) -> str:
    """How many jobs are done, at work, failed."""
    states = [status.state for status in jobs.values()]
    of = f" of {total}" if total is not None else ""
    failed = f", {states.count(FAILED)} failed" if FAILED in states else ""
    return f"{states.count(DONE)}{of} done, {states.count(RUNNING)} at work{failed}"


def rows(jobs: Mapping[int, Status], swept: Swept) -> list[list[str]]:
    """A row a job."""
    return [_row(number, status, swept, best(jobs)) for number, status in jobs.items()]


def best(jobs: Mapping[int, Status]) -> int | None:
    """The number of the finished job that is most accurate on images held out."""
    done = {n: s.val_top1 for n, s in jobs.items() if s.state == DONE and s.val_top1 is not None}
    return max(done, key=lambda number: done[number]) if done else None


def _row(number: int, status: Status, swept: Swept, first: int | None) -> list[str]:
    return [
        f"#{number}",
        swept.told(status.settings),
        status.state,
        status.stage,
        status.error if status.state == FAILED else status.step,
        "" if status.top1 is None else f"{status.top1:.2f}",
        "best" if number == first else "",
    ]
