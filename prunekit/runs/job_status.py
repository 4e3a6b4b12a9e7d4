"""The status of a sweep's jobs, which may run in other processes or on other machines."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json, write_json

RUNNING, DONE, FAILED = "running", "done", "failed"
FOLDER_PREFIX = f".sweep-{platform.node()}-"  # followed by the id of the sweep's process
_SECONDS_BETWEEN = 0.5  # reports of progress


@dataclass(frozen=True)
class JobStatus:
    """The state of one job.

    `place` is its directory, `settings` are the overrides that it was started with, and `step` is
    what it is doing.
    """

    place: str
    settings: Sequence[str] = ()
    state: str = RUNNING
    stage: str = ""
    step: str = ""
    top1: float | None = None  # percent on test images, of the last finished stage
    val_top1: float | None = None  # the same on validation images, by which jobs are compared
    error: str = ""


@dataclass(frozen=True)
class StatusDir:
    """A folder with one status file per job, named by the job's number."""

    path: Path

    def read(self) -> dict[int, JobStatus]:
        """Return the last status of every job; skips files that are being replaced."""
        jobs = {}
        for file in self.path.glob("[0-9]*.json"):
            try:
                values = read_json(file)
                values["settings"] = tuple(values["settings"])
                jobs[int(file.stem)] = JobStatus(**values)
            except (ArtifactError, KeyError, TypeError):
                continue
        return dict(sorted(jobs.items()))

    def write(self, number: int, status: JobStatus) -> None:
        """Replace the status of one job."""
        write_json(self.path / f"{number}.json", asdict(status))


def owner_of(folder: Path) -> int | None:
    """Return the id of the process on this machine that made the folder; None if it has none."""
    number = folder.name.removeprefix(FOLDER_PREFIX)
    return int(number) if number.isdigit() else None


def is_abandoned(folder: Path) -> bool:
    """Return whether the process on this machine that made the folder has ended."""
    if (process := owner_of(folder)) is None:
        return False
    try:
        os.kill(process, 0)  # sends no signal
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class StatusWriter:
    """Keeps the status of one job, and its file in a `StatusDir` if there is one, up to date."""

    def __init__(self, directory: StatusDir | None, number: int, status: JobStatus) -> None:
        self.directory, self.number, self.status = directory, number, status
        self._last_write = 0.0

    def update(self, **fields: Any) -> None:
        """Change fields of the status and write it."""
        self.status = replace(self.status, **fields)
        if self.directory is not None:
            self.directory.write(self.number, self.status)
            self._last_write = time.monotonic()

    def progress(self, label: str, done: int, total: int) -> None:
        """Report the progress of a step: its start at once, then at most twice a second."""
        if done == 0 or time.monotonic() - self._last_write >= _SECONDS_BETWEEN:
            self.update(step=label if total <= 1 else f"{label}, {done / total:.0%}")

    def stage(self, name: str, metrics: Mapping[str, object] | None = None) -> None:
        """Report that a stage begins, or with its metrics that it has finished."""
        values = {key: (metrics or {}).get(key) for key in ("top1", "val_top1")}
        numbers = {key: float(v) for key, v in values.items() if isinstance(v, int | float)}
        self.update(stage=name, step="", **numbers)
