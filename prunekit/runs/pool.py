"""Stages that the jobs of a sweep share: computed by whoever comes first, taken by all others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit.runs.methods import fingerprint
from prunekit.runs.report import Settings
from prunekit.runs.rundir import RunDir, StageDir


@dataclass(frozen=True)
class Pool:
    """A folder of stages by what they are: `<stage>-<fingerprint of its identity>/<stage>`.

    It is a cache. Who takes a stage gets links to its files, so that deleting the folder loses
    nothing but work that could have been spared.
    """

    path: Path

    @contextmanager
    def stage(self, name: str, identity: Settings) -> Iterator[StageDir]:
        """Hold the stage with this identity; waits while another job computes it."""
        run = RunDir(self.path / f"{name}-{fingerprint(identity)}")
        with run.lock(wait=True):
            yield run.stage(name)


def adopt(made: StageDir, place: StageDir, command: str | None = None) -> None:
    """Make the finished stage `made` that of `place`, which was begun with the same settings.

    Files are hard links where the file system has them, else copies. The report, which says where
    the source lies and which `command` asked for it, is written anew, and last.
    """
    for file in sorted(made.path.rglob("*")):
        target = place.path / file.relative_to(made.path)
        if file.is_file() and file.name not in ("settings.json", "report.json"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(file, target)
    place.take(replace(made.report(), command=command))


def _link(file: Path, target: Path) -> None:
    """A second name for the file; files are replaced whole, never written in place."""
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
