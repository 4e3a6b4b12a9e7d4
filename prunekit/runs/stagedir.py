"""The directory of one stage: what is finished is skipped, what was interrupted is resumed."""

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
from prunekit.runs import former
from prunekit.runs.digests import compare, digest_of
from prunekit.runs.files import read_json, write_csv, write_json
from prunekit.runs.layout import CONTINUED, DRAFTS, PROGRESS, RESULTS, foreign, named
from prunekit.runs.refusals import begun_earlier, made_otherwise
from prunekit.runs.report import Outcome, Report, Settings, environment

if TYPE_CHECKING:
    from prunekit.runs.rundir import RunDir
    from prunekit.training import Checkpoint

FORMAT = 2  # of settings.json; the first had no number and left out what the data hold
_WARNINGS = ".warnings"  # no work: other settings may follow what was warned of


class Status(Enum):
    """What `StageDir.begin` found."""

    NEW = "new"
    RESUME = "resume"
    DONE = "done"


class Listener(Protocol):
    """Takes the numbers of a stage, besides its files; `stage` is its directory."""

    def epochs(self, stage: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows of metrics.csv so far, after every epoch."""

    def finished(self, stage: Path, report: Report) -> None:
        """The report, right before it is written."""


class StageDir:
    """The directory of one stage: settings.json, model.pt, metrics.csv, report.json."""

    def __init__(self, run: RunDir, name: str) -> None:
        self.run, self.name = run, name
        self.path = run.path / name
        self._started = time.monotonic()
        self._settings: Settings = {}
        self._source: Path | None = None
        self._teacher: Path | None = None
        self._listener: Listener | None = None

    @property
    def finished(self) -> bool:
        """Whether the report, which is written last, is there."""
        return (self.path / "report.json").is_file()

    @property
    def started(self) -> bool:
        """Whether there is any work in it: more than the settings it was asked for."""
        work = named(self.path, (*RESULTS, *PROGRESS))
        return any(file.name not in ("settings.json", _WARNINGS) for file in work)

    @property
    def checkpoint(self) -> Checkpoint:
        """Where training saves its progress; it is continued by the same stage only."""
        from prunekit.runs.labels import fingerprint
        from prunekit.training import Checkpoint  # brings torch

        return Checkpoint(self.path / "last.pt", f"{self.name} {fingerprint(self._settings)}")

    @property
    def identity(self) -> Settings:
        """What it was begun with."""
        return self._settings

    @property
    def sourced(self) -> bool:
        """Whether it starts from a model file."""
        return self._source is not None

    @property
    def source(self) -> Path:
        """The model file that this stage starts from; ArtifactError where it has none."""
        if self._source is None:
            raise ArtifactError(f"{self.path} was begun without a source")
        return self._source

    @property
    def teacher(self) -> Path | None:
        """The model file whose network teaches in this stage, where one does."""
        return self._teacher

    def begin(
        self,
        identity: Mapping[str, Any],
        *,
        source: Path | None,
        teacher: Path | None = None,
        overwrite: bool = False,
    ) -> Status:
        """Compare with what is on disk; raises ArtifactError that names the keys that differ.

        `source` and `teacher` are files that the stage reads; what they hold is part of the
        `identity`, as is all that decides the result. A directory in which no work was done yet
        takes the new one, and so does one with another identity that is to be overwritten: what
        prunekit wrote there goes as soon as there is any new work. A finished stage whose files
        are damaged is computed anew.
        """
        self._settings, self._source, self._teacher = identity, source, teacher
        self._refuse_itself("source", source)
        self._refuse_itself("distill.teacher", teacher)
        for draft in named(self.path, DRAFTS):  # a process was killed while it wrote this
            draft.unlink(missing_ok=True)
        if not self.started:
            former.put_back(self.path)
        if self.started and overwrite and self._differs():
            self._put_away()
        if self.started:
            self._refuse_other()
            if not self.finished:
                self._check_progress()
                return Status.RESUME
            if self._sound():
                self._drop_progress()
                return Status.DONE
        (self.path / _WARNINGS).unlink(missing_ok=True)
        self._write_settings()
        return Status.NEW

    def abandon(self) -> None:
        """Leave nothing behind where no work was done, and what was there before."""
        with contextlib.suppress(ArtifactError):  # the directory is another process's by now
            assure(self.path)
            self._abandon()

    def _abandon(self) -> None:
        if self.started:
            return
        for file in named(self.path, ("settings.json", _WARNINGS)):
            file.unlink()
        former.put_back(self.path)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def tell(self, listener: Listener | None) -> None:
        """Let the listener have rows and the report too, as they are written."""
        self._listener = listener

    def complete(self, outcome: Outcome) -> Report:
        """Write the report, which marks the stage as finished, and drop the checkpoints."""
        report = Report(
            stage=self.name,
            settings=self._settings,
            source=self._settings.get("source"),
            metrics=outcome.metrics,
            notes=(*outcome.notes, *self._warned()),
            environment=environment(),
            seconds=round(self._earlier() + time.monotonic() - self._started, 3),
            origin=self._origin(),
            command=outcome.command,
            files=self._digests(),
        )
        if self._listener is not None:
            self._listener.finished(self.path, report)
        return self._close(report)

    def take(self, report: Report) -> None:
        """Finish with the report of the same stage elsewhere, whose files are here already."""
        own = {"settings.json": digest_of(self.path / "settings.json")}
        self._close(replace(report, origin=self._origin(), files={**report.files, **own}))

    def report(self) -> Report:
        """The report of a finished stage; ArtifactError when it is damaged or another's."""
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

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv, one row per epoch, and note the time spent so far."""
        write_csv(self.path / "metrics.csv", rows)
        if self._listener is not None:
            self._listener.epochs(self.path, rows)

    def note_time(self) -> None:
        """Remember the seconds spent so far, so that a resumed run reports the whole.

        And what the tables hold that such a run goes on with.
        """
        files = {file.name: digest_of(file) for file in named(self.path, CONTINUED)}
        seconds = self._earlier() + self._since()
        write_json(self.path / "seconds", {"seconds": seconds, "files": files})

    def _check_progress(self) -> None:
        """Set aside what an interrupted stage cannot go on with; a checkpoint is checked later."""
        try:
            noted = self._noted()
        except ArtifactError:
            aside = set_aside(self.path / "seconds")
            self._say("seconds", f"is damaged and was set aside as {aside.name}")
            return
        for name in compare(self.path, noted.get("files", {})).any:
            if (file := self.path / name).exists():
                aside = set_aside(file)
                self._say(name, f"has changed and was set aside as {aside.name}; it starts anew")

    def _noted(self) -> Settings:
        file = self.path / "seconds"
        return read_json(file) if file.is_file() else {}

    def warn(self, line: str) -> None:
        """Remember a warning, so that the report tells it, a resumed run's too."""
        known = self._warned()
        if line not in known:
            write_json(self.path / _WARNINGS, {"lines": [*known, line]})

    def _warned(self) -> list[str]:
        file = self.path / _WARNINGS
        return list(read_json(file).get("lines", ())) if file.is_file() else []

    def _since(self) -> float:
        now = time.monotonic()
        elapsed, self._started = now - self._started, now
        return elapsed

    def _earlier(self) -> float:
        return float(self._noted().get("seconds", 0))

    def _drop_progress(self) -> None:
        """Delete what only an unfinished stage needs."""
        for file in named(self.path, PROGRESS):
            file.unlink()

    def _close(self, report: Report) -> Report:
        """Write the report, which marks the stage as finished."""
        report = report.sealed()
        write_json(self.path / "report.json", report.to_dict())
        self._drop_progress()
        former.forget(self.path)
        return report

    def _digests(self) -> dict[str, str]:
        files = (file for file in named(self.path, RESULTS) if file.name != "report.json")
        return {file.name: digest_of(file) for file in files}

    def _recorded(self) -> Settings:
        """What the work in the directory was begun with; a finished stage's report knows it too.

        ArtifactError for work of an earlier version, which did not note all that decides.
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
            raise begun_earlier(self.path, self.finished)
        return current(recorded)

    def _differs(self) -> bool:
        """Whether the work in it is not that of this identity, as far as it can be told."""
        try:
            return flat(self._recorded()) != flat(self._settings)
        except ArtifactError:
            return True

    def _refuse_other(self) -> None:
        old, new = flat(self._recorded()), flat(self._settings)
        if keys := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
            changes = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys]
            raise made_otherwise(self.run.path, self.name, listed(changes, 4, "; "))

    def _sound(self) -> bool:
        """Whether the files of the finished stage can be used; what cannot is set aside.

        Says what is damaged, and what was changed and is used all the same.
        """
        try:
            report = self.report()
        except ArtifactError:
            self._set_aside(("report.json",))
            return False
        found = compare(self.path, report.files)
        if useless := [name for name in found.useless if name != "settings.json"]:
            self._set_aside(useless)
            return False
        if "settings.json" in found.useless:
            self._set_aside(["settings.json"], "it is written anew, since the report knows it too")
            self._write_settings()
        for name in (*found.edited, *(["report.json"] if report.edited else [])):
            self._say(name, f"was changed since {self.name} was finished")
        for name in {*found.gone} - {"settings.json"}:
            self._say(name, "is gone")
        return True

    def _set_aside(self, names: Sequence[str], then: str = "") -> None:
        """Rename files and say what follows: unless said otherwise the stage is computed anew."""
        for name in names:
            file, fault = self.path / name, "is gone"
            if file.exists():
                fault = f"is damaged and was set aside as {set_aside(file).name}"
            self._say(name, f"{fault}; {then or f'{self.name} is computed anew'}")
        if not then:
            former.put_away(self.path)

    def _put_away(self) -> None:
        former.put_away(self.path)
        for path in foreign(self.path):
            self._say(path.name, "was not written by prunekit and stays")

    def _say(self, name: str, line: str) -> None:
        complain(f"{os.path.relpath(self.path / name)} {line}")

    def _write_settings(self) -> None:
        write_json(self.path / "settings.json", {**self._settings, "format": FORMAT})

    def _origin(self) -> str | None:
        """Where the source lies, seen from here: that holds after both were moved together."""
        if self._source is None:
            return None
        return os.path.relpath(self._source.resolve(), self.path.resolve())

    def _refuse_itself(self, setting: str, file: Path | None) -> None:
        if file is not None and self.path.resolve() in file.resolve().parents:
            raise ArtifactError(
                f"{setting}={file} lies in the directory that {self.name} writes to; "
                "choose name=..."
            )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys: {"solver.rho": 1.0}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found
