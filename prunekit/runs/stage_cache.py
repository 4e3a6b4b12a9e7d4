"""Stages that the jobs of a sweep share: computed by whoever comes first, taken by all others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit.atomic_write import assure, set_aside
from prunekit.console import complain
from prunekit.errors import ArtifactError
from prunekit.runs.digests import compare
from prunekit.runs.labels import fingerprint
from prunekit.runs.layout import RESULTS, TRACKED, named
from prunekit.runs.report import Settings
from prunekit.runs.rundir import RunDir, StageDir

SHARED = ".shared"  # the folder, beside the runs of sweeps


def entry_name(stage: str, identity: Settings) -> str:
    """The folder of the stage with this identity."""
    return f"{stage}-{fingerprint(identity)}"


@dataclass(frozen=True)
class StageCache:
    """A folder of stages by what they are: `<stage>-<fingerprint of its identity>/<stage>`.

    It is a cache. Who takes a stage gets links to its files, so that deleting the folder loses
    nothing but work that could have been spared.
    """

    path: Path

    @contextmanager
    def stage(self, name: str, identity: Settings) -> Iterator[StageDir]:
        """KeepZeros the stage with this identity; waits while another job computes it.

        A finished one in which any byte differs from what was written, a csv that a person edited
        in one of the runs too, is set aside, so that it is computed anew.
        """
        run = RunDir(self.path / entry_name(name, identity))
        with run.lock(wait=True):
            place = run.stage(name)
            if place.finished and (fault := _fault(place)):
                aside = set_aside(place.path)
                complain(
                    f"{fault}; it was set aside as {os.path.relpath(aside)} and is computed anew"
                )
            yield place


def _fault(place: StageDir) -> str:
    """What is wrong with a finished stage; nothing where all bytes are those that were written."""
    shown = os.path.relpath(place.path)
    try:
        report = place.report()
    except ArtifactError:
        return f"{shown}/report.json is damaged"
    changed = [*compare(place.path, report.files).any, *(["report.json"] if report.edited else [])]
    return f"{', '.join(changed)} of {shown}, which runs share, changed" if changed else ""


def adopt(made: StageDir, place: StageDir, command: str | None = None) -> None:
    """Make the finished stage `made` that of `place`, which was begun with the same settings.

    Files are hard links where the file system has them, else copies. The report, which says where
    the source lies and which `command` asked for it, is written anew, and last.
    """
    for file in named(made.path, (*RESULTS, *TRACKED)):
        if file.name not in ("settings.json", "report.json"):
            _link(file, place.path / file.name)
    place.take(replace(made.report(), command=command))


def _link(file: Path, target: Path) -> None:
    """A second name for the file; files are replaced whole, never written in place."""
    assure(target)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
