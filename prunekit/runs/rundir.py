"""The directory of one run, and the model files of runs: which file, which content, from where."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import ArtifactError
from prunekit.runs import lock
from prunekit.runs.files import digest_of, read_json
from prunekit.runs.layout import READ_ONLY_STAGES, STAGES
from prunekit.runs.stagedir import StageDir, StageStatus

__all__ = [
    "READ_ONLY_STAGES",
    "STAGES",
    "RunDir",
    "StageDir",
    "StageStatus",
    "dense_file",
    "identity_of",
    "model_file",
]
_REMEDY = "give distill.teacher=path/to/model.pt"


@dataclass(frozen=True)
class RunDir:
    """The directory of one run, `outputs/<name>[/<overrides>]`, with a folder for each stage."""

    path: Path

    def stage(self, name: str) -> StageDir:
        """Return the directory of one stage."""
        return StageDir(self, name)

    def lock(self, *, wait: bool = False) -> AbstractContextManager[None]:
        """Hold the run's lock inside a `with` block; see `lock.hold`."""
        return lock.hold(self.path, wait=wait)

    def has_source(self, stage: str) -> bool:
        """Return whether an earlier stage that leaves a model was started in this run."""
        return any(self.stage(name).started for name in self._models_before(stage))

    def find_source(self, stage: str) -> Path:
        """Return the model file of the nearest earlier stage; ArtifactError if it is unfinished."""
        earlier = self._models_before(stage)
        for directory in map(self.stage, reversed(earlier)):
            if directory.finished:
                return directory.path / "model.pt"
            if directory.started:
                raise ArtifactError(
                    f"{stage} would start from {directory.path}, which is unfinished; run "
                    f"{directory.name} again to finish it, or give source=path/to/model.pt"
                )
        raise ArtifactError(
            f"{stage} starts from a model and {self.path} holds none; run prunekit "
            f"{' or '.join(earlier)} first, or give source=path/to/model.pt"
        )

    @staticmethod
    def _models_before(stage: str) -> list[str]:
        return [name for name in STAGES[: STAGES.index(stage)] if name not in READ_ONLY_STAGES]


def model_file(location: str | Path, setting: str = "source") -> Path:
    """Return the model file at `location`: a file, a stage directory, or a run (its last stage).

    Raises ArtifactError that names the setting if there is none.
    """
    path = Path(location)
    if path.is_file():
        return path
    if (path / "model.pt").is_file():
        return path / "model.pt"
    for name in reversed(STAGES):
        if (path / name / "model.pt").is_file() and (path / name / "report.json").is_file():
            return path / name / "model.pt"
    fault = "is no model file, finished stage or finished run" if path.exists() else "is not there"
    raise ArtifactError(f"{setting}={location} {fault}; give a model.pt, or finish that run first")


def identity_of(source: Path | None) -> str | None:
    """Return "<stage>/<file> (<digest>)" for a model file: it changes with content, not location.

    Raises ArtifactError if the file cannot be read.
    """
    if source is None:
        return None
    try:
        digest = digest_of(source)
    except OSError as error:
        raise ArtifactError(
            f"{source} cannot be read ({error.strerror}); run the stage that makes it again"
        ) from error
    return f"{source.parent.name}/{source.name} ({digest})"


def dense_file(file: Path) -> Path:
    """Follow the sources of a model file back to the dense network and return its file.

    The chain ends at a file of pretrain, or at one without a report beside it, which a run was
    given as `source`. Raises ArtifactError if a file in between is missing or has changed, and if
    the first stage built its network itself and kept no file of it.
    """
    report = _report_beside(file)
    while report.get("source") is not None:
        file = _find_source_of(file.parent, report)
        report = _report_beside(file)
    if report.get("stage", "pretrain") != "pretrain":
        raise ArtifactError(
            f"the dense network behind {file} was built in {report['stage']} and no file keeps "
            f"it; {_REMEDY}, or start the run with pretrain"
        )
    return file


def _report_beside(file: Path) -> Mapping[str, Any]:
    """Return the report of the stage that wrote a model file, empty if no stage did."""
    report = file.parent / "report.json"
    return read_json(report) if file.name == "model.pt" and report.is_file() else {}


def _find_source_of(stage: Path, report: Mapping[str, Any]) -> Path:
    """Return the present path of a stage's source: its recorded path, or one in the same run."""
    name, _, digest = str(report["source"]).rpartition(" ")
    candidates = [stage.parent / name]
    if report.get("origin") is not None:
        candidates.insert(0, (stage / str(report["origin"])).resolve())
    for path in candidates:
        if path.is_file() and str(identity_of(path)).rpartition(" ")[2] == digest:
            return path
    raise ArtifactError(
        f"{stage} was made from {report['source']}, which is gone or has changed since; {_REMEDY}"
    )
