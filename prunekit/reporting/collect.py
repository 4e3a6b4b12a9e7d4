"""Reading run directories: one plain row for every stage that is found."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.runs.digests import compare
from prunekit.runs.files import read_json
from prunekit.runs.labels import described
from prunekit.runs.report import Report
from prunekit.runs.rundir import STAGES

if TYPE_CHECKING:
    from pandas import DataFrame

Row = dict[str, Any]
_MARKS = frozenset({"report.json", "settings.json"})


def collect(paths: Iterable[str | Path]) -> DataFrame:
    """Every stage found under the given directories, one row a run and stage.

    Columns: run, stage, status (finished, unfinished, damaged), path, reason (of damage), changed
    (files that are not as they were written; None where that cannot be known), seconds, source,
    origin, command, timing (how latency was measured), environment, what the settings say
    (see `methods.described`), then one per metric. Stages without a readable report have no
    metrics. Folders below a path whose names begin with a dot are left out. Raises ArtifactError
    when there is no stage at all.
    """
    import pandas as pd

    roots = [Path(path) for path in paths]
    found: dict[Path, tuple[Path, str]] = {}
    for root in roots:
        for name, place in _places(root):
            found.setdefault(place, (root, name))
    if not found:
        named = ", ".join(map(str, roots)) or "no path"
        raise ArtifactError(f"no run found under {named}; give the directory that runs are kept in")
    called = _told_apart(found)
    return pd.DataFrame([_stage_row(called[place.parent], place) for place in found])


def _told_apart(found: Mapping[Path, tuple[Path, str]]) -> dict[Path, str]:
    """Run directories to names; runs of one name under several roots say their root."""
    runs = {place.parent: origin for place, origin in found.items()}
    uses = Counter(name for _, name in runs.values())
    return {
        run: name if uses[name] == 1 else str(root / name) for run, (root, name) in runs.items()
    }


def _places(root: Path) -> list[tuple[str, Path]]:
    """Runs and their stage directories, in the order of runs and then of the pipeline.

    A run is where it really lies, however it was reached; a stage may be a link to one that runs
    share, and counts for every run.
    """
    found = [place for place in _walk(os.path.abspath(root)) if place.name in STAGES]
    found.sort(key=lambda place: (str(place.parent), STAGES.index(place.name)))
    home = Path(os.path.abspath(root))
    runs = {place.parent: Path(os.path.realpath(place.parent)) for place in found}
    return [
        (_name(home, place, runs[place.parent]), runs[place.parent] / place.name) for place in found
    ]


def _walk(root: str) -> Iterator[Path]:
    """Directories that hold a report or settings."""
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".")]
        if not _MARKS.isdisjoint(files):
            yield Path(folder)
        for name in inside:
            place = os.path.join(folder, name)
            if name in STAGES and os.path.islink(place) and not _MARKS.isdisjoint(_files(place)):
                yield Path(place)


def _files(place: str) -> list[str]:
    return os.listdir(place) if os.path.isdir(place) else []


def _name(root: Path, place: Path, run: Path) -> str:
    """A run's path below the root; a root may be a single run or stage: then its own name."""
    inside = place.parent.relative_to(root) if place != root else Path()
    return str(inside) if inside.parts else run.name


def _stage_row(run: str, place: Path) -> Row:
    row: Row = {"run": run, "stage": place.name, "status": "unfinished", "path": str(place)}
    if not (place / "report.json").is_file():
        return row
    try:
        report = Report.from_dict(read_json(place / "report.json"))
        return {**row, "status": "finished", "changed": _changed(place, report), **_told(report)}
    except (ArtifactError, TypeError, ValueError, AttributeError) as error:
        return {**row, "status": "damaged", "reason": " ".join(str(error).split())}


def _changed(place: Path, report: Report) -> str | None:
    """Files of a stage that are not as they were written; networks are checked by who reads one."""
    if not report.files:
        return None
    digests = {n: digest for n, digest in report.files.items() if Path(n).stem != "model"}
    own = ["report.json"] if report.edited else []
    return ", ".join([*compare(place, digests).any, *own])


def _told(report: Report) -> Row:
    """What a report says, as one flat row; `data` says which images were found, too."""
    known = described(report.settings)
    if "data" in known and "test_images" in report.metrics:
        known["data"] += f" images={report.metrics['test_images']}"
    return {
        "seconds": float(report.seconds),
        "source": report.source,
        "origin": report.origin,
        "command": report.command,
        "timing": timing(report.settings, report.environment),
        "environment": ", ".join(f"{k} {v}" for k, v in report.environment.items()),
        **known,
        **report.metrics,
    }


def timing(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str | None:
    """How milliseconds were measured, in words; None where they were not.

    Only milliseconds of one timing can stand in one ranking.
    """
    latency = settings.get("latency")
    if not isinstance(latency, dict):
        return None
    facts = {"batch": latency.get("batch"), "threads": latency.get("threads")}
    said = [f"{name} {value}" for name, value in facts.items() if value is not None]
    machine = environment.get("cpu") if isinstance(environment, dict) else None
    return ", ".join([*said, *([str(machine)] if machine else [])])
