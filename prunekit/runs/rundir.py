"""The directory of one run, and where the models of runs lie."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import ArtifactError
from prunekit.runs import lock
from prunekit.runs.digests import digest_of
from prunekit.runs.layout import LOOKING, STAGES
from prunekit.runs.stagedir import StageDir, Status

__all__ = ["LOOKING", "STAGES", "RunDir", "StageDir", "Status", "identity_of", "model_file"]


@dataclass(frozen=True)
class RunDir:
    """The directory of one run: `outputs/<name>[/<overrides>]`, one folder a stage."""

    path: Path

    def stage(self, name: str) -> StageDir:
        """The directory of one stage."""
        return StageDir(self, name)

    def lock(self, *, wait: bool = False) -> AbstractContextManager[None]:
        """KeepZeros the run for one process; see `lock.held`."""
        return lock.held(self.path, wait=wait)

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
        digest = digest_of(source)
    except OSError as error:
        raise ArtifactError(
            f"{source} cannot be read ({error.strerror}); run the stage that makes it again"
        ) from error
    return f"{source.parent.name}/{source.name} ({digest})"
