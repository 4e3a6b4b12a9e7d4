"""Where the jobs of a sweep, each in a process or on a machine of its own, say how far they are."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json, write_json

RUNNING, DONE, FAILED = "running", "done", "failed"
FOLDER = f".sweep-{platform.node()}-"  # and the process that put it up
_EVERY = 0.5  # seconds between two notes of progress


@dataclass(frozen=True)
class Status:
    """What one job says of itself.

    `place` is its directory, `settings` what it was started with, `step` what it is doing.
    """

    place: str
    settings: Sequence[str] = ()
    state: str = RUNNING
    stage: str = ""
    step: str = ""
    top1: float | None = None  # percent, of the last stage that is finished, on test images
    val_top1: float | None = None  # the same on images held out, by which jobs are compared
    error: str = ""


@dataclass(frozen=True)
class Board:
    """A folder with a file per job, named by its number."""

    path: Path

    def read(self) -> dict[int, Status]:
        """What every job said last; a file that is just being replaced is read next time."""
        found = {}
        for file in self.path.glob("[0-9]*.json"):
            try:
                said = read_json(file)
                found[int(file.stem)] = Status(**{**said, "settings": tuple(said["settings"])})
            except (ArtifactError, KeyError, TypeError):
                continue
        return dict(sorted(found.items()))

    def post(self, number: int, status: Status) -> None:
        """Replace what the job said."""
        write_json(self.path / f"{number}.json", asdict(status))


def owner(place: Path) -> int | None:
    """The process of this machine that put up the board; None where the name says none."""
    number = place.name.removeprefix(FOLDER)
    return int(number) if number.isdigit() else None


def left(place: Path) -> bool:
    """Whether the process of this machine that put up the board is gone."""
    if (process := owner(place)) is None:
        return False
    try:
        os.kill(process, 0)  # asks only whether it lives
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class Notice:
    """The status of one job, which it keeps up to date."""

    def __init__(self, board: Board | None, number: int, status: Status) -> None:
        self.board, self.number, self.status = board, number, status
        self._last = 0.0

    def tell(self, **facts: str | float | None) -> None:
        """Change some of the status."""
        self.status = replace(self.status, **facts)
        if self.board is not None:
            self.board.post(self.number, self.status)
            self._last = time.monotonic()

    def progress(self, label: str, done: int, total: int) -> None:
        """Say how far work is; what begins at once, then at most twice a second."""
        if done == 0 or time.monotonic() - self._last >= _EVERY:
            self.tell(step=label if total <= 1 else f"{label}, {done / total:.0%}")

    def stage(self, name: str, metrics: Mapping[str, object] | None = None) -> None:
        """Say that a stage begins, or with its metrics, that it is finished."""
        known = {key: (metrics or {}).get(key) for key in ("top1", "val_top1")}
        found = {key: float(v) for key, v in known.items() if isinstance(v, int | float)}
        self.tell(stage=name, step="", **found)
