"""Run directories: the same command again skips what is finished and resumes what is not."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json, write_csv, write_json
from prunekit.runs.report import Outcome, Report, Settings, environment

STAGES = ("pretrain", "sparsify", "prune", "finetune", "measure")


class Status(Enum):
    """What `StageDir.begin` found."""

    NEW = "new"
    RESUME = "resume"
    DONE = "done"


@dataclass(frozen=True)
class RunDir:
    """The directory of one run: `outputs/<name>[/<overrides>]`, one folder a stage."""

    path: Path

    def stage(self, name: str) -> StageDir:
        """The directory of one stage."""
        return StageDir(self, name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one process; the lock goes with the process, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"another process is working on {self.path}; wait for it, or choose name=..."
                ) from error
            yield

    def find_source(self, stage: str) -> Path | None:
        """The model file of the nearest earlier stage that is finished, None where none is."""
        for name in reversed(STAGES[: STAGES.index(stage)]):
            if self.stage(name).finished:
                return self.stage(name).path / "model.pt"
        return None


class StageDir:
    """The directory of one stage: settings.json, model.pt, metrics.csv, report.json."""

    def __init__(self, run: RunDir, name: str) -> None:
        self.run, self.name = run, name
        self.path = run.path / name
        self._started = time.monotonic()
        self._settings: Settings = {}
        self._source: Path | None = None

    @property
    def finished(self) -> bool:
        """Whether the report, which is written last, is there."""
        return (self.path / "report.json").is_file()

    @property
    def checkpoint(self) -> Path:
        """Where training saves its progress; multi-phase training adds suffixes."""
        return self.path / "last.pt"

    @property
    def source(self) -> Path:
        """The model file that this stage starts from."""
        if self._source is None:
            raise ArtifactError(
                f"{self.name} starts from a model and {self.run.path} holds none; run the stages "
                "before it, or give source=path/to/model.pt"
            )
        return self._source

    def begin(self, settings: Settings, source: Path | None, *, overwrite: bool = False) -> Status:
        """Compare with what is on disk; raises ArtifactError that names the keys that differ."""
        identity = {**settings, "source": _identity(source)}
        self._settings, self._source = identity, source
        recorded = self.path / "settings.json"
        if overwrite:
            shutil.rmtree(self.path, ignore_errors=True)
        if not recorded.is_file():
            write_json(recorded, identity)
            return Status.NEW
        self._refuse_other(flat(read_json(recorded)), flat(identity))
        return Status.DONE if self.finished else Status.RESUME

    def complete(self, outcome: Outcome) -> Report:
        """Write the report, which marks the stage as finished, and drop the checkpoints."""
        report = Report(
            stage=self.name,
            settings=self._settings,
            source=self._settings.get("source"),
            metrics=outcome.metrics,
            notes=tuple(outcome.notes),
            environment=environment(),
            seconds=round(self._earlier() + time.monotonic() - self._started, 3),
        )
        write_json(self.path / "report.json", report.to_dict())
        for file in self.path.glob("last*.pt"):
            file.unlink()
        (self.path / "seconds").unlink(missing_ok=True)
        return report

    def report(self) -> Report:
        """The report of a finished stage."""
        return Report.from_dict(read_json(self.path / "report.json"))

    def write_history(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.csv, one row per epoch, and note the time spent so far."""
        write_csv(self.path / "metrics.csv", rows)

    def note_time(self) -> None:
        """Remember the seconds spent so far, so that a resumed run reports the whole."""
        write_json(self.path / "seconds", {"seconds": self._earlier() + self._since()})

    def _since(self) -> float:
        now = time.monotonic()
        elapsed, self._started = now - self._started, now
        return elapsed

    def _earlier(self) -> float:
        file = self.path / "seconds"
        return float(read_json(file)["seconds"]) if file.is_file() else 0.0

    def _refuse_other(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        if keys:
            shown = "; ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys[:4])
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise ArtifactError(
                f"{self.path} was made with other settings: {shown}{more}; "
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


def model_file(place: str | Path) -> Path:
    """The model file at `place`: the file itself, a stage directory, or a run (its last stage)."""
    path = Path(place)
    if path.is_file():
        return path
    if (path / "model.pt").is_file():
        return path / "model.pt"
    for name in reversed(STAGES):
        if (path / name / "model.pt").is_file() and (path / name / "report.json").is_file():
            return path / name / "model.pt"
    raise ArtifactError(f"source={place} is no model file, finished stage or finished run")


def _identity(source: Path | None) -> str | None:
    """What a source is called and holds: a changed file is another source, a moved one is not."""
    if source is None:
        return None
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    return f"{source.parent.name}/{source.name} ({digest})"
