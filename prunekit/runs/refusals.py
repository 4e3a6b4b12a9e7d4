"""Errors for a stage directory that holds other work: what would be lost, and how to keep it."""

from __future__ import annotations

import shlex
from os.path import relpath
from pathlib import Path

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json
from prunekit.runs.layout import PROGRESS, RESULTS, STAGES, matching_files


def different_settings(run: Path, stage: str, changes: str) -> ArtifactError:
    """Return the error for a stage that was begun with other settings."""
    later = STAGES[STAGES.index(stage) :]
    lost = [f"{name} ({_seconds(run / name):.0f} s)" for name in later if _has_work(run / name)]
    return ArtifactError(
        f"{run / stage} was made with other settings: {changes}; choose "
        f"name=...{_command_to_keep(run, stage)}, or overwrite=true, which removes "
        f"{', '.join(lost)}"
    )


def earlier_version(stage: Path, finished: bool) -> ArtifactError:
    """Return the error for work of an earlier version of prunekit."""
    reason = "whose settings.json does not note all that decides a result"
    if finished:
        return ArtifactError(
            f"{stage} was finished by an earlier version of prunekit, {reason}; use it as "
            f"source={relpath(stage)} name=..., report it, or run again with overwrite=true"
        )
    return ArtifactError(
        f"{stage} was begun by an earlier version of prunekit, {reason}, and cannot be continued; "
        "choose name=..., or overwrite=true"
    )


def _command_to_keep(run: Path, stage: str) -> str:
    """Return the command that starts from the run's last model, "" if it has none."""
    earlier = [name for name in STAGES[: STAGES.index(stage)] if _has_model(run / name)]
    if not earlier:
        return ""
    line = ["prunekit", stage, f"source={relpath(run / earlier[-1])}", f"name={_free_name(run)}"]
    return f" ({shlex.join(line)} keeps what was trained)"


def _free_name(run: Path) -> str:
    """Return the run's name with the first number that makes it unused."""
    number = 2
    while (run.parent / f"{run.name}-{number}").exists():
        number += 1
    return f"{run.name}-{number}"


def _has_model(stage: Path) -> bool:
    return (stage / "report.json").is_file() and (stage / "model.pt").is_file()


def _has_work(stage: Path) -> bool:
    return {file.name for file in matching_files(stage, (*RESULTS, *PROGRESS))} > {"settings.json"}


def _seconds(stage: Path) -> float:
    """Return the seconds spent on a stage, 0 if no file says so."""
    for name in ("report.json", "seconds"):
        try:
            return float(read_json(stage / name).get("seconds", 0))
        except (ArtifactError, TypeError, ValueError):
            continue
    return 0.0
