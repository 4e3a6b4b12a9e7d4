"""The directory of one stage: finished work is skipped, interrupted work is resumed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunekit.atomic_write import assure, set_aside
from prunekit.console import complain
from prunekit.errors import ArtifactError, listed
from prunekit.renamed import current
from prunekit.runs import layout
from prunekit.runs.files import compare_digests, digest_of, read_json, write_csv, write_json
from prunekit.runs.layout import CONTINUED, DRAFTS, PROGRESS, RESULTS, matching_files
from prunekit.runs.refusals import different_settings, earlier_version
from prunekit.runs.report import Outcome, Report, Settings, environment, fingerprint, flatten

if TYPE_CHECKING:
    from prunekit.runs.rundir import RunDir
    from prunekit.training import Checkpoint

FORMAT = 2  # of settings.json; the first had no number and no digests of the data
_WARNINGS = ".warnings"  # does not count as work: warnings alone do not bind the settings


class StageStatus(Enum):
    """The state of a stage directory when `StageDir.begin` compares it with the settings."""

    NEW = "new"
    RESUME = "resume"
    DONE = "done"


class Listener(Protocol):
    """Receives the numbers of a stage as they are written; `stage` is its directory."""

    def epochs(self, stage: Path, records: Sequence[Mapping[str, Any]]) -> None:
        """Receive all lines of metrics.csv so far, after every epoch."""

    def finished(self, stage: Path, report: Report) -> None:
        """Receive the report right before it is written."""


class StageDir:
    """The directory of one stage: settings.json, model.pt, metrics.csv, report.json."""

    def __init__(self, run: RunDir, name: str) -> None:
        self.run, self.name = run, name
        self.path = run.path / name
        self._started = time.monotonic()
        self._identity: Settings = {}
        self._source: Path | None = None
        self._teacher: Path | None = None
        self._listener: Listener | None = None

    @property
    def finished(self) -> bool:
        """Return whether the report exists, which is written last."""
        return (self.path / "report.json").is_file()

    @property
    def started(self) -> bool:
        """Return whether any work was done here, beyond writing the settings."""
        work = matching_files(self.path, (*RESULTS, *PROGRESS))
        return any(file.name not in ("settings.json", _WARNINGS) for file in work)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of training, which only a stage with the same identity continues."""
        from prunekit.training import Checkpoint  # imports torch

        return Checkpoint(self.path / "last.pt", f"{self.name} {fingerprint(self._identity)}")

    @property
    def identity(self) -> Settings:
        """The settings and digests that decide the result, as `begin` received them."""
        return self._identity

    @property
    def has_source(self) -> bool:
        """Return whether the stage starts from a model file."""
        return self._source is not None

    @property
    def source(self) -> Path:
        """The model file that this stage starts from; ArtifactError if it has none."""
        if self._source is None:
            raise ArtifactError(f"{self.path} was begun without a source")
        return self._source

    @property
    def teacher(self) -> Path | None:
        """The model file of the distillation teacher, None without distillation."""
        return self._teacher

    def begin(
        self,
        identity: Mapping[str, Any],
        *,
        source: Path | None,
        teacher: Path | None = None,
        overwrite: bool = False,
    ) -> StageStatus:
        """Compare the identity with the one on disk and return how to proceed.

        `identity` holds everything that decides the result, with the digests of the model files
        `source` and `teacher`. It replaces the recorded one if no work was done yet. If they
        differ, ArtifactError names the keys, or with `overwrite` the old work moves to the backup,
        which is deleted once the new work is complete. A finished stage with damaged files is
        computed again.
        """
        self._identity, self._source, self._teacher = identity, source, teacher
        self._refuse_own_file("source", source)
        self._refuse_own_file("distill.teacher", teacher)
        if not self.finished:
            self._refuse_link()
        self._delete_drafts()
        if not self.started:
            layout.restore_backup(self.path)
        if self.started and overwrite and self._differs():
            self._back_up()
        if self.started:
            self._refuse_different()
            if not self.finished:
                self._check_progress()
                return StageStatus.RESUME
            if self._is_intact():
                self._delete_progress()
                return StageStatus.DONE
        (self.path / _WARNINGS).unlink(missing_ok=True)
        self._write_settings()
        return StageStatus.NEW

    def abandon(self) -> None:
        """Undo `begin` if no work was done since: restore the directory as it was."""
        with contextlib.suppress(ArtifactError):  # the directory belongs to another process by now
            assure(self.path)
            self._abandon()

    def _abandon(self) -> None:
        if self.started:
            return
        for file in matching_files(self.path, ("settings.json", _WARNINGS)):
            file.unlink()
        layout.restore_backup(self.path)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def set_listener(self, listener: Listener | None) -> None:
        """Pass metrics and the report on to a listener as they are written."""
        self._listener = listener

    def complete(self, outcome: Outcome) -> Report:
        """Write the report, which marks the stage as finished, and delete the checkpoints."""
        report = Report(
            stage=self.name,
            settings=self._identity,
            source=self._identity.get("source"),
            metrics=outcome.metrics,
            notes=(*outcome.notes, *self._recorded_warnings()),
            environment=environment(),
            seconds=round(self._earlier_seconds() + time.monotonic() - self._started, 3),
            origin=self._origin(),
            command=outcome.command,
            files=self._digests(),
        )
        if self._listener is not None:
            self._listener.finished(self.path, report)
        return self._close(report)

    def adopt_report(self, report: Report) -> None:
        """Finish with the report of a shared stage, whose files were linked here before."""
        own = {"settings.json": digest_of(self.path / "settings.json")}
        self._close(replace(report, origin=self._origin(), files={**report.files, **own}))

    def report(self) -> Report:
        """Read the report; ArtifactError if it is damaged or that of another stage."""
        file = self.path / "report.json"
        values = read_json(file)
        try:
            report = Report.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"{file} is no report of a stage ({error}); run the stage again"
            ) from error
        if report.stage != self.name:
            raise ArtifactError(
                f"{file} is the report of {report.stage!r}, not of {self.name}; run the stage again"
            )
        return report

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv, one line per epoch."""
        write_csv(self.path / "metrics.csv", records)
        if self._listener is not None:
            self._listener.epochs(self.path, records)

    def note_time(self) -> None:
        """Record the seconds spent so far, so that a resumed stage reports the total.

        The file also holds digests of the tables to which a resumed stage adds.
        """
        files = {file.name: digest_of(file) for file in matching_files(self.path, CONTINUED)}
        seconds = self._earlier_seconds() + self._elapsed()
        write_json(self.path / "seconds", {"seconds": seconds, "files": files})

    def _check_progress(self) -> None:
        """Set aside files that a resumed stage cannot use; training checks its checkpoint later."""
        for name, read in (("seconds", self._recorded_time), (_WARNINGS, self._recorded_warnings)):
            try:
                read()
            except ArtifactError:
                target = set_aside(self.path / name)
                self._complain(name, f"is damaged and was set aside as {target.name}")
        for name in compare_digests(self.path, self._recorded_time()["files"]).all:
            if (file := self.path / name).exists():
                target = set_aside(file)
                line = f"has changed and was set aside as {target.name}; it starts anew"
                self._complain(name, line)

    def _recorded_time(self) -> Settings:
        """Return the seconds and the digests of `note_time`; ArtifactError if they are damaged."""
        file = self.path / "seconds"
        recorded = {"seconds": 0.0, "files": {}, **(read_json(file) if file.is_file() else {})}
        kinds = {"seconds": int | float, "files": Mapping}
        if any(not isinstance(recorded[key], kind) for key, kind in kinds.items()):
            raise ArtifactError(f"{file} is damaged; delete it and run again")
        if not {*recorded["files"]} <= {*CONTINUED}:
            raise ArtifactError(f"{file} names files that no stage adds to; delete it")
        return recorded

    def record_warning(self, line: str) -> None:
        """Record a warning for the report, also for that of a resumed stage."""
        lines = self._recorded_warnings()
        if line not in lines:
            write_json(self.path / _WARNINGS, {"lines": [*lines, line]})

    def _recorded_warnings(self) -> list[str]:
        file = self.path / _WARNINGS
        lines = read_json(file).get("lines") if file.is_file() else []
        if not isinstance(lines, list):
            raise ArtifactError(f"{file} is damaged; delete it and run again")
        return [str(line) for line in lines]

    def _elapsed(self) -> float:
        """Return the seconds since the last call."""
        now = time.monotonic()
        elapsed, self._started = now - self._started, now
        return elapsed

    def _earlier_seconds(self) -> float:
        return float(self._recorded_time()["seconds"])

    def _delete_progress(self) -> None:
        """Delete the files that only an unfinished stage needs."""
        for file in () if self.path.is_symlink() else matching_files(self.path, PROGRESS):
            file.unlink()

    def _delete_drafts(self) -> None:
        """Delete what killed processes were writing."""
        for draft in () if self.path.is_symlink() else matching_files(self.path, DRAFTS):
            draft.unlink(missing_ok=True)

    def _close(self, report: Report) -> Report:
        """Write the report, which marks the stage as finished."""
        report = report.with_digest()
        write_json(self.path / "report.json", report.to_dict())
        self._delete_progress()
        layout.delete_backup(self.path)
        return report

    def _digests(self) -> dict[str, str]:
        files = (f for f in matching_files(self.path, RESULTS) if f.name != "report.json")
        return {file.name: digest_of(file) for file in files}

    def _recorded(self) -> Settings:
        """Return the recorded identity, from the report or from settings.json.

        Raises ArtifactError for work of an earlier version, which did not record all that decides.
        """
        with contextlib.suppress(ArtifactError):
            if self.finished and (report := self.report()).files and not report.edited:
                return current(report.settings)
        try:
            recorded = read_json(self.path / "settings.json")
        except ArtifactError as error:
            raise ArtifactError(
                f"{self.path} holds work, but {self.path / 'settings.json'}, which says how it was "
                "made, is missing or damaged; choose name=..., or overwrite=true"
            ) from error
        if recorded.pop("format", None) != FORMAT:
            raise earlier_version(self.path, self.finished)
        return current(recorded)

    def _differs(self) -> bool:
        """Return whether the recorded identity is another one, or cannot be read."""
        try:
            return _chosen(self._recorded()) != _chosen(self._identity)
        except ArtifactError:
            return True

    def _refuse_different(self) -> None:
        old, new = _chosen(self._recorded()), _chosen(self._identity)
        if keys := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
            changes = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys]
            raise different_settings(self.run.path, self.name, listed(changes, 4, "; "))

    def _is_intact(self) -> bool:
        """Return whether the files of the finished stage can be used; set aside those that cannot.

        Warns about damaged files, and about changed ones that are still used.
        """
        try:
            report = self.report()
        except ArtifactError:
            self._set_aside(("report.json",))
            return False
        changes = compare_digests(self.path, report.files)
        if unusable := [name for name in changes.unusable if name != "settings.json"]:
            self._set_aside(unusable)
            return False
        if "settings.json" in changes.unusable:
            remedy = "it is written anew, since the report knows it too"
            self._set_aside(["settings.json"], remedy)
            self._write_settings()
        for name in (*changes.edited, *(["report.json"] if report.edited else [])):
            self._complain(name, f"was changed since {self.name} was finished")
        for name in {*changes.missing} - {"settings.json"}:
            self._complain(name, "is gone")
        return True

    def _set_aside(self, names: Sequence[str], remedy: str = "") -> None:
        """Rename damaged files and name the remedy; without one the stage is computed again."""
        self._refuse_link()
        for name in names:
            file, fault = self.path / name, "is gone"
            if file.exists():
                fault = f"is damaged and was set aside as {set_aside(file).name}"
            self._complain(name, f"{fault}; {remedy or f'{self.name} is computed anew'}")
        if not remedy:
            layout.back_up(self.path)

    def _back_up(self) -> None:
        self._refuse_link()
        layout.back_up(self.path)
        for path in layout.foreign_paths(self.path):
            self._complain(path.name, "was not written by prunekit and stays")

    def _complain(self, name: str, line: str) -> None:
        complain(f"{os.path.relpath(self.path / name)} {line}")

    def _write_settings(self) -> None:
        write_json(self.path / "settings.json", {**self._identity, "format": FORMAT})

    def _origin(self) -> str | None:
        """Return the source's path relative to this directory, valid if both move together."""
        if self._source is None:
            return None
        return os.path.relpath(self._source.resolve(), self.path.resolve())

    def _refuse_link(self) -> None:
        """Raise ArtifactError where work would be done in a directory outside of the run."""
        if self.path.is_symlink():
            raise ArtifactError(
                f"{self.path} is a link to a directory outside of the run, where nothing is "
                "computed; delete the link, or choose name=..."
            )

    def _refuse_own_file(self, setting: str, file: Path | None) -> None:
        if file is not None and self.path.resolve() in file.resolve().parents:
            raise ArtifactError(
                f"{setting}={file} lies in the directory that {self.name} writes to; "
                "choose name=..."
            )


def _chosen(settings: Settings) -> dict[str, Any]:
    """Return settings with dotted keys, without groups of which nothing is chosen.

    So a run that was made before a group existed equals one with `group=none`.
    """
    nothing = {"name": "none"}
    return flatten({key: value for key, value in settings.items() if value != nothing})
