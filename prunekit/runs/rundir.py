"""Run directories: the same command again skips what is finished and resumes what is not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TextIO

from prunekit.console import doing
from prunekit.errors import ArtifactError, listed
from prunekit.runs.files import read_json, write_csv, write_json
from prunekit.runs.report import Outcome, Report, Settings, environment

STAGES = (
    *("pretrain", "sparsify", "sensitivity", "prune", "features", "finetune", "export"),
    "measure",
)
LOOKING = frozenset({"sensitivity", "features", "export", "measure"})  # they leave no model


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


@dataclass(frozen=True)
class RunDir:
    """The directory of one run: `outputs/<name>[/<overrides>]`, one folder a stage."""

    path: Path

    def stage(self, name: str) -> StageDir:
        """The directory of one stage."""
        return StageDir(self, name)

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the run for one process; the lock goes with the process, however it ends.

        Raises ArtifactError where another process has it, unless it is to `wait` for that.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a", encoding="utf-8") as file:
            if not _locked(file):
                if not wait:
                    raise ArtifactError(
                        f"another process is working on {self.path}; wait for it, or choose "
                        "name=..."
                    )
                doing("waits for another process")
                fcntl.flock(file, fcntl.LOCK_EX)
                doing("")
            yield

    def has_source(self, stage: str) -> bool:
        """Whether an earlier stage that leaves a model was started here, finished or not."""
        return any(self.stage(name).started for name in self._models_before(stage))

    def find_source(self, stage: str) -> Path:
        """The model file of the nearest earlier stage; ArtifactError where it is not finished."""
        earlier = self._models_before(stage)
        for place in map(self.stage, reversed(earlier)):
            if place.finished:
                return place.path / "model.pt"
            if place.started:
                raise ArtifactError(
                    f"{stage} would start from {place.path}, which is unfinished; run "
                    f"{place.name} again to finish it, or give source=path/to/model.pt"
                )
        raise ArtifactError(
            f"{stage} starts from a model and {self.path} holds none; run prunekit "
            f"{' or '.join(earlier)} first, or give source=path/to/model.pt"
        )

    @staticmethod
    def _models_before(stage: str) -> list[str]:
        return [name for name in STAGES[: STAGES.index(stage)] if name not in LOOKING]


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
        return self.path.is_dir() and any(
            file.name != "settings.json" and not file.name.startswith(".")
            for file in self.path.iterdir()
        )

    @property
    def checkpoint(self) -> Path:
        """Where training saves its progress; multi-phase training adds suffixes."""
        return self.path / "last.pt"

    @property
    def identity(self) -> Settings:
        """What it was begun with: its settings, and what its source and teacher hold."""
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
        identity: Settings,
        *,
        source: Path | None,
        teacher: Path | None = None,
        overwrite: bool = False,
    ) -> Status:
        """Compare with what is on disk; raises ArtifactError that names the keys that differ.

        `identity` is all that decides the result. A directory in which no work was done yet takes
        the new one.
        """
        self._settings, self._source, self._teacher = identity, source, teacher
        self._refuse_itself("source", source)
        self._refuse_itself("distill.teacher", teacher)
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        for draft in self.path.glob(".*.part*"):  # a process was killed while it wrote this
            draft.unlink(missing_ok=True)
        if not self.started:
            self._warnings.unlink(missing_ok=True)
            write_json(self.path / "settings.json", identity)
            return Status.NEW
        self._refuse_other(flat(self._recorded()), flat(identity))
        if not self.finished:
            return Status.RESUME
        self._drop_progress()
        return Status.DONE

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
        )
        if self._listener is not None:
            self._listener.finished(self.path, report)
        write_json(self.path / "report.json", report.to_dict())
        self._drop_progress()
        return report

    def take(self, report: Report) -> None:
        """Finish with the report of the same stage elsewhere, whose files are here already."""
        report = replace(report, origin=self._origin())
        write_json(self.path / "report.json", report.to_dict())

    def report(self) -> Report:
        """The report of a finished stage; ArtifactError when it is damaged or another's."""
        file = self.path / "report.json"
        values = read_json(file)
        try:
            report = Report.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ArtifactError(
                f"{file} is no report of a stage ({error}); delete it and run again"
            ) from error
        if report.stage != self.name:
            raise ArtifactError(
                f"{file} is the report of {report.stage!r}, not of {self.name}; delete it and "
                "run again"
            )
        return report

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv, one row per epoch, and note the time spent so far."""
        write_csv(self.path / "metrics.csv", rows)
        if self._listener is not None:
            self._listener.epochs(self.path, rows)

    def note_time(self) -> None:
        """Remember the seconds spent so far, so that a resumed run reports the whole."""
        write_json(self.path / "seconds", {"seconds": self._earlier() + self._since()})

    def warn(self, line: str) -> None:
        """Remember a warning, so that the report tells it, a resumed run's too."""
        known = self._warned()
        if line not in known:
            write_json(self._warnings, {"lines": [*known, line]})

    @property
    def _warnings(self) -> Path:
        return self.path / ".warnings"  # no work: other settings may follow what was warned of

    def _warned(self) -> list[str]:
        there = self._warnings.is_file()
        return list(read_json(self._warnings).get("lines", ())) if there else []

    def _since(self) -> float:
        now = time.monotonic()
        elapsed, self._started = now - self._started, now
        return elapsed

    def _earlier(self) -> float:
        file = self.path / "seconds"
        return float(read_json(file).get("seconds", 0)) if file.is_file() else 0.0

    def _drop_progress(self) -> None:
        """Delete what only an unfinished stage needs."""
        for pattern in ("last*.pt", "seconds", self._warnings.name):
            for file in self.path.glob(pattern):
                file.unlink()

    def _recorded(self) -> Settings:
        try:
            return read_json(self.path / "settings.json")
        except ArtifactError as error:
            raise ArtifactError(
                f"{self.path} holds work, but {self.path / 'settings.json'}, which says how it was "
                "made, is missing or damaged; choose name=..., or overwrite=true"
            ) from error

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

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            changes = [f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys]
            raise ArtifactError(
                f"{self.path} was made with other settings: {listed(changes, 4, '; ')}; "
                "choose name=..., or overwrite=true"
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


def model_file(place: str | Path, setting: str = "source") -> Path:
    """The model file at `place`: the file itself, a stage directory, or a run (its last stage).

    Raises ArtifactError that names the setting where there is none.
    """
    path = Path(place)
    if path.is_file():
        return path
    if (path / "model.pt").is_file():
        return path / "model.pt"
    for name in reversed(STAGES):
        if (path / name / "model.pt").is_file() and (path / name / "report.json").is_file():
            return path / name / "model.pt"
    found = "is no model file, finished stage or finished run" if path.exists() else "is not there"
    raise ArtifactError(f"{setting}={place} {found}; give a model.pt, or finish that run first")


def identity_of(source: Path | None) -> str | None:
    """What a source is called and holds: a changed file is another source, a moved one is not."""
    if source is None:
        return None
    try:
        digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ArtifactError(
            f"{source} cannot be read ({error.strerror}); run the stage that makes it with "
            "overwrite=true"
        ) from error
    return f"{source.parent.name}/{source.name} ({digest})"


def _locked(file: TextIO) -> bool:
    """Lock the file for this process; False where another one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
