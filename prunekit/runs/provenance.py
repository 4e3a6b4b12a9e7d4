"""Which network a model file was made from: source by source, back to the first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import ArtifactError
from prunekit.runs.files import read_json
from prunekit.runs.rundir import identity_of

_MEND = "give distill.teacher=path/to/model.pt"


def dense_file(file: Path) -> Path:
    """The model file that the one at `file` came from, through all stages that have a source.

    That is one of pretrain, or one with no report beside it: where a run was given `source`.
    Raises ArtifactError where a file between is gone or has changed, and where the first stage
    built its network itself and left only what it made of it.
    """
    report = _report(file)
    while report.get("source") is not None:
        file = _source(file.parent, report)
        report = _report(file)
    if report.get("stage", "pretrain") != "pretrain":
        raise ArtifactError(
            f"the dense network behind {file} was built in {report['stage']} and no file keeps "
            f"it; {_MEND}, or start the run with pretrain"
        )
    return file


def _report(file: Path) -> Mapping[str, Any]:
    """What the stage that made the file says; nothing where no stage did."""
    beside = file.parent / "report.json"
    return read_json(beside) if file.name == "model.pt" and beside.is_file() else {}


def _source(stage: Path, report: Mapping[str, Any]) -> Path:
    """Where the source of a stage lies now: where it lay then, or in the same run."""
    name, _, digest = str(report["source"]).rpartition(" ")
    places = [stage.parent / name]
    if report.get("origin") is not None:
        places.insert(0, (stage / str(report["origin"])).resolve())
    for place in places:
        if place.is_file() and str(identity_of(place)).rpartition(" ")[2] == digest:
            return place
    raise ArtifactError(
        f"{stage} was made from {report['source']}, which is gone or has changed since; {_MEND}"
    )
