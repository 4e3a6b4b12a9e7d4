"""A sweep on the terminal: a table of its jobs while they run, and their results at the end."""

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
from prunekit.cli.arguments import plain_arguments
from prunekit.config import sweep_dir
from prunekit.errors import ConfigError, SweepError, listed
from prunekit.runs.job_status import (
    DONE,
    FAILED,
    FOLDER_PREFIX,
    RUNNING,
    JobStatus,
    StatusDir,
    is_abandoned,
    owner_of,
)

COLUMNS = ("job", "settings", "state", "stage", "step", "top-1 %", "by validation")
_BOARD = "PRUNEKIT_BOARD"  # the variable that tells processes of a launcher the board's folder
_ROOT = "dataset.root"
_OF_HYDRA = ("hydra", "launch")  # overrides that are no part of the settings of a job
_INTERVAL = 0.5  # seconds between two reads of the board
_LOST = "ended without a word (killed, or out of memory)"
_AGAIN = "the same command does what is missing; what each printed is in its log.txt"


def current_board() -> StatusDir | None:
    """Return the status board of the sweep that this process is part of."""
    path = os.environ.get(_BOARD)
    return StatusDir(Path(path)) if path and Path(path).is_dir() else None


@cache
def end_with_sweep(folder: Path) -> None:
    """End this process when the sweep that owns the board in `folder` has ended.

    The jobs of a killed sweep would otherwise go on. Only child processes of the sweep are ended;
    those on other machines are left to their launcher.
    """
    parent = os.getppid()
    if parent != owner_of(folder):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_INTERVAL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Sweep(Callback):
    """The Hydra callback that shows the table of jobs, in the process of the command."""

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        """Create the status board before any job starts, and show its table."""
        root = sweep_dir(config)
        if root is None:
            return
        _remove_old_boards(root)
        folder = root / f"{FOLDER_PREFIX}{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        swept = Swept.of(config)
        _put_roots_into_names(config, swept.keys)
        _open(StatusDir(folder), swept)


def check_before_jobs(command: str, argv: Sequence[str]) -> None:
    """Raise the error that every job would raise: that of a part which no job changes.

    Nothing is checked for a search, nor where whole choices of groups are swept, since a choice may
    set other groups too.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from prunekit.cli.explain import compose_settings
    from prunekit.config import groups

    try:
        overrides = OverridesParser.create().parse_overrides(plain_arguments(argv))
        keys = {o.key_or_group for o in overrides if o.is_sweep_override()}
        own = [o for o in overrides if not o.get_key_element().startswith(_OF_HYDRA)]
        if not keys or keys & groups().keys() or "search" in {o.get_key_element() for o in own}:
            return
        constant = [str(o.input_line) for o in own if not o.is_sweep_override()]
        settings = compose_settings(command, argv, constant)
    except (HydraException, ConfigError):
        return  # the jobs name what is missing or unknown
    from prunekit.stages.pipeline import check_constant_parts

    check_constant_parts(settings, command, keys)


def _put_roots_into_names(config: Any, keys: frozenset[str]) -> None:
    """Have `dataset.root` in the names of jobs if it is swept; otherwise it is in no name.

    Launchers compose the config of each job again, from the overrides of Hydra itself.
    """
    if _ROOT in keys:
        excluded = config.hydra.job.config.override_dirname.exclude_keys
        remaining = ",".join(key for key in excluded if key != _ROOT)
        line = f"hydra.job.config.override_dirname.exclude_keys=[{remaining}]"
        config.hydra.overrides.hydra.append(line)


def _remove_old_boards(root: Path) -> None:
    """Remove the boards of processes of this machine that were killed."""
    for folder in filter(is_abandoned, root.glob(f"{FOLDER_PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Swept:
    """The keys that differ between the jobs of a sweep, and the number of jobs if it is known."""

    keys: frozenset[str]
    count: int | None

    @classmethod
    def of(cls, config: Any) -> Swept:
        """Read it from Hydra's config; a search states its number of trials itself."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        sweeper = config.hydra.sweeper
        lines = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        lines += config.hydra.overrides.task
        overrides = OverridesParser.create().parse_overrides(lines)
        ranges = [override for override in overrides if override.is_sweep_override()]
        keys = frozenset(override.get_key_element() for override in ranges)
        if not all(override.is_discrete_sweep() for override in ranges) or "n_trials" in sweeper:
            return cls(keys, sweeper.get("n_trials"))
        return cls(keys, math.prod(len(list(o.sweep_string_iterator())) for o in ranges))

    def describe(self, settings: Sequence[str]) -> str:
        """Return the settings that differ from other jobs; all of them where none are swept."""
        own = [setting for setting in settings if setting.partition("=")[0] in self.keys]
        return ", ".join(own or settings)


_viewers: list[Viewer] = []  # the viewer of the running sweep, if there is one


def _open(board: StatusDir, swept: Swept) -> None:
    os.environ[_BOARD] = str(board.path)
    _viewers.append(Viewer(board, swept))
    _viewers[-1].start()


def close() -> dict[int, JobStatus]:
    """End the table of the running sweep, if any; return the last status of every job."""
    if not _viewers:
        return {}
    viewer = _viewers.pop()
    viewer.over.set()
    viewer.join()
    os.environ.pop(_BOARD, None)
    statuses = viewer.board.read()
    shutil.rmtree(viewer.board.path, ignore_errors=True)
    return statuses


def conclude(statuses: Mapping[int, JobStatus]) -> None:
    """Print the results of all jobs and write their page; SweepError names those that failed."""
    from prunekit.reporting.command import main as report
    from prunekit.runs.identical import identical_models

    done = [status.place for status in statuses.values() if status.state == DONE]
    done = [folder for folder in done if any(Path(folder).glob("*/report.json"))]
    if done:
        report([*done, "--html", str(Path(os.path.commonpath(done)) / "report.html")])
        for line in identical_models([Path(folder) for folder in done]):
            console.say(f"note: {line}")
    failed = [status for status in statuses.values() if status.state != DONE]
    for error in dict.fromkeys(status.error or _LOST for status in failed):
        places = [status.place for status in failed if (status.error or _LOST) == error]
        console.complain(f"prunekit: {listed(places)}: {error}")
    if failed:
        names = ", ".join(status.place for status in failed)
        raise SweepError(f"{len(failed)} of {len(statuses)} jobs failed: {names}; {_AGAIN}")


class Viewer(threading.Thread):
    """Shows the jobs on the board: as a table on a terminal, elsewhere as a line per change."""

    def __init__(self, board: StatusDir, swept: Swept) -> None:
        super().__init__(daemon=True)
        self.board, self.swept = board, swept
        self.over = threading.Event()
        self._printed: dict[int, tuple[str, str]] = {}

    def run(self) -> None:
        """Read the board until the sweep is over."""
        shown = console.live_table() if sys.stdout.isatty() else contextlib.nullcontext(None)
        with shown as draw:
            while not self.over.wait(_INTERVAL):
                self._show(draw)
            self._show(draw)

    def _show(self, draw: console.DrawTable | None) -> None:
        jobs = self.board.read()
        if draw is None:
            self._print_changes(jobs)
        else:
            draw(headline(jobs, self.swept.count), COLUMNS, lines(jobs, self.swept))

    def _print_changes(self, jobs: Mapping[int, JobStatus]) -> None:
        for number, status in jobs.items():
            change = (status.stage, status.state)
            if self._printed.get(number) != change:
                self._printed[number] = change
                console.say("  ".join(filter(None, _line(number, status, self.swept, best(jobs)))))


def headline(jobs: Mapping[int, JobStatus], total: int | None) -> str:
    """Return the numbers of jobs that are done, at work and failed."""
    states = [status.state for status in jobs.values()]
    of = f" of {total}" if total is not None else ""
    failed = f", {states.count(FAILED)} failed" if FAILED in states else ""
    return f"{states.count(DONE)}{of} done, {states.count(RUNNING)} at work{failed}"


def lines(jobs: Mapping[int, JobStatus], swept: Swept) -> list[list[str]]:
    """Return one line of the table for every job."""
    return [_line(number, status, swept, best(jobs)) for number, status in jobs.items()]


def best(jobs: Mapping[int, JobStatus]) -> int | None:
    """Return the number of the finished job with the highest validation accuracy."""
    done = {n: s.val_top1 for n, s in jobs.items() if s.state == DONE and s.val_top1 is not None}
    return max(done, key=lambda number: done[number]) if done else None


def _line(number: int, status: JobStatus, swept: Swept, first: int | None) -> list[str]:
    return [
        f"#{number}",
        swept.describe(status.settings),
        status.state,
        status.stage,
        status.error if status.state == FAILED else status.step,
        "" if status.top1 is None else f"{status.top1:.2f}",
        "best" if number == first else "",
    ]
