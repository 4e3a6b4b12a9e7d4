"""What is said where a stage holds other work than is asked for: what is at stake, and the way."""

from __future__ import annotations

import shlex
from os.path import relpath
from pathlib import Path

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json
from prunekit.runs.layout import PROGRESS, RESULTS, STAGES, named


def made_otherwise(run: Path, stage: str, changes: str) -> ArtifactError:
    """For a stage of a run that was made with other settings."""
    later = STAGES[STAGES.index(stage) :]
    lost = [f"{name} ({_seconds(run / name):.0f} s)" for name in later if _begun(run / name)]
    return ArtifactError(
        f"{run / stage} was made with other settings: {changes}; choose "
        f"name=...{_way(run, stage)}, or overwrite=true, which removes {', '.join(lost)}"
    )


def begun_earlier(stage: Path, finished: bool) -> ArtifactError:
    """For work of an earlier version of prunekit."""
    reason = "which did not note all that decides a result"
    if finished:
        return ArtifactError(
            f"{stage} was finished by an earlier version of prunekit, {reason}; use it as "
            f"source={relpath(stage)} name=..., report it, or run again with overwrite=true"
        )
    return ArtifactError(
        f"{stage} was begun by an earlier version of prunekit, {reason}, and cannot be continued; "
        "choose name=..., or overwrite=true"
    )


def _way(run: Path, stage: str) -> str:
    """The command that starts from what is there already, where that is a model."""
    before = [name for name in STAGES[: STAGES.index(stage)] if _usable(run / name)]
    if not before:
        return ""
    line = ["prunekit", stage, f"source={relpath(run / before[-1])}", f"name={_free(run)}"]
    return f" ({shlex.join(line)} keeps what was trained)"


def _free(run: Path) -> str:
    """A name beside the run's that is not taken."""
    number = 2
    while (run.parent / f"{run.name}-{number}").exists():
        number += 1
    return f"{run.name}-{number}"


def _usable(stage: Path) -> bool:
    return (stage / "report.json").is_file() and (stage / "model.pt").is_file()


def _begun(stage: Path) -> bool:
    return {file.name for file in named(stage, (*RESULTS, *PROGRESS))} > {"settings.json"}


def _seconds(stage: Path) -> float:
    """How long it was worked on, as far as that is known."""
    for name in ("report.json", "seconds"):
        try:
            return float(read_json(stage / name).get("seconds", 0))
        except (ArtifactError, TypeError, ValueError):
            continue
    return 0.0
