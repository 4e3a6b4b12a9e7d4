"""Stages that jobs of a sweep share: the first job computes a stage, the others link its files."""

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
from prunekit.runs.files import compare_digests
from prunekit.runs.layout import RESULTS, TRACKER_FILES, matching_files
from prunekit.runs.report import Settings, fingerprint
from prunekit.runs.rundir import RunDir, StageDir

SHARED = ".shared"  # the folder of the cache, beside the runs of a sweep


def entry_name(stage: str, identity: Settings) -> str:
    """Return the name of the cache's folder for a stage with this identity."""
    return f"{stage}-{fingerprint(identity)}"


@dataclass(frozen=True)
class StageCache:
    """A folder of finished stages, `<stage>-<fingerprint of its identity>/<stage>`.

    Runs hold hard links to the files, so deleting the folder loses no result.
    """

    path: Path

    @contextmanager
    def stage(self, name: str, identity: Settings) -> Iterator[StageDir]:
        """Yield the stage with this identity, locked; waits while another job computes it.

        A finished stage is set aside, to be computed again, if any byte differs from what was
        written, even in a csv that a person edited in one of the runs.
        """
        run = RunDir(self.path / entry_name(name, identity))
        with run.lock(wait=True):
            stage = run.stage(name)
            if stage.finished and (fault := _find_fault(stage)):
                target = set_aside(stage.path)
                complain(
                    f"{fault}; it was set aside as {os.path.relpath(target)} and is computed anew"
                )
            yield stage


def _find_fault(stage: StageDir) -> str:
    """Return what changed in a finished stage, "" if every byte is as it was written."""
    path = os.path.relpath(stage.path)
    try:
        report = stage.report()
    except ArtifactError:
        return f"{path}/report.json is damaged"
    changed = compare_digests(stage.path, report.files).all
    names = [*changed, *(["report.json"] if report.edited else [])]
    return f"{', '.join(names)} of {path}, which runs share, changed" if names else ""


def link_stage(shared: StageDir, stage: StageDir, command: str | None = None) -> None:
    """Give `stage` the files of the finished stage `shared`, which has the same identity.

    Files become hard links, or copies if the file system has no links. The report is written last
    and not linked: it records the run's own path to the source, and its `command`.
    """
    for file in matching_files(shared.path, (*RESULTS, *TRACKER_FILES)):
        if file.name not in ("settings.json", "report.json"):
            _link(file, stage.path / file.name)
    stage.adopt_report(replace(shared.report(), command=command))


def _link(file: Path, target: Path) -> None:
    """Give the file a second name, which is safe since files are never written in place."""
    assure(target)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)
