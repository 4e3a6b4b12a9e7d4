"""Reading run directories into a data frame with one line for each stage."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.reporting.labels import describe
from prunekit.runs.files import compare_digests, read_json
from prunekit.runs.report import Report
from prunekit.runs.rundir import STAGES

if TYPE_CHECKING:
    from pandas import DataFrame

Record = dict[str, Any]
_STAGE_FILES = frozenset({"report.json", "settings.json"})


def collect(paths: Iterable[str | Path]) -> DataFrame:
    """Return a data frame with one line for every stage below the given directories.

    Columns: run, stage, status (finished, unfinished, damaged), path, reason (of damage), changed
    (names of files that were changed later; None if that cannot be known), seconds, source, origin,
    command, timing (how latency was measured), environment, the facts of `labels.describe`, and one
    column per metric. Stages without a readable report have no metrics. Folders whose names begin
    with a dot are skipped. Raises ArtifactError if there is no stage at all.
    """
    import pandas as pd

    roots = [Path(path) for path in paths]
    stages: dict[Path, tuple[Path, str]] = {}
    for root in roots:
        for name, stage in _find_stages(root):
            stages.setdefault(stage, (root, name))
    if not stages:
        places = ", ".join(map(str, roots)) or "no path"
        raise ArtifactError(
            f"no run found under {places}; give the directory that runs are kept in"
        )
    names = _unique_names(stages)
    return pd.DataFrame([_record(names[stage.parent], stage) for stage in stages])


def _unique_names(stages: Mapping[Path, tuple[Path, str]]) -> dict[Path, str]:
    """Map run directories to names; equal names below several roots get their root in front."""
    runs = {stage.parent: origin for stage, origin in stages.items()}
    uses = Counter(name for _, name in runs.values())
    return {
        run: name if uses[name] == 1 else str(root / name) for run, (root, name) in runs.items()
    }


def _find_stages(root: Path) -> list[tuple[str, Path]]:
    """Return names of runs and their stage directories, sorted by run, then as in the pipeline.

    Links to runs are resolved, so that no run occurs twice; a run has the name of its link where
    only the link is below the root. Links to stages are not resolved: a stage that runs share
    belongs to each of them.
    """
    top = Path(os.path.abspath(root))
    real = cache(os.path.realpath)  # asks the file system about every folder above, every time
    found: dict[Path, Path] = {}  # the first path of every stage
    for path in _walk(str(top)):
        if path.name in STAGES:
            found.setdefault(Path(real(path.parent)) / path.name, path)
    stages = [*found.values()]
    stages.sort(key=lambda path: (str(path.parent), STAGES.index(path.name)))
    runs = {path.parent: Path(real(path.parent)) for path in stages}
    return [
        (_run_name(top, path, runs[path.parent]), runs[path.parent] / path.name) for path in stages
    ]


def _walk(root: str) -> Iterator[Path]:
    """Yield directories that hold a report or settings; links are followed last, and only once."""
    pending, seen = [root], set()
    while pending:
        top = pending.pop(0)
        real = os.path.realpath(top)
        for folder, subfolders, files in os.walk(top):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            place = real + folder[len(top) :]  # os.walk follows no links
            if place in seen:
                subfolders.clear()
                continue
            seen.add(place)
            if not _STAGE_FILES.isdisjoint(files):
                yield Path(folder)
            links = [path for n in subfolders if os.path.islink(path := os.path.join(folder, n))]
            stages = [path for path in links if os.path.basename(path) in STAGES]
            yield from (Path(path) for path in stages if not _STAGE_FILES.isdisjoint(_list(path)))
            pending += [path for path in links if path not in stages]


def _list(path: str) -> list[str]:
    return os.listdir(path) if os.path.isdir(path) else []


def _run_name(root: Path, stage: Path, run: Path) -> str:
    """Return a run's path below the root, or its own name if the root is the run or the stage."""
    inside = stage.parent.relative_to(root) if stage != root else Path()
    return str(inside) if inside.parts else run.name


def _record(run: str, stage: Path) -> Record:
    record: Record = {"run": run, "stage": stage.name, "status": "unfinished", "path": str(stage)}
    if not (stage / "report.json").is_file():
        return record
    try:
        report = Report.from_dict(read_json(stage / "report.json"))
        changed = _changed_files(stage, report)
        return {**record, "status": "finished", "changed": changed, **_report_values(report)}
    except (ArtifactError, TypeError, ValueError, AttributeError, OverflowError) as error:
        return {**record, "status": "damaged", "reason": " ".join(str(error).split())}


def _changed_files(stage: Path, report: Report) -> str | None:
    """Return names of changed files, except models, which are checked when they are loaded."""
    if not report.files:
        return None
    digests = {n: digest for n, digest in report.files.items() if Path(n).stem != "model"}
    own = ["report.json"] if report.edited else []
    return ", ".join([*compare_digests(stage, digests).all, *own])


def _report_values(report: Report) -> Record:
    """Return a report as one flat record; its `data` includes the digest of the test images."""
    facts = describe(report.settings)
    if "data" in facts and "test_images" in report.metrics:
        facts["data"] += f" images={report.metrics['test_images']}"
    return {
        "seconds": float(report.seconds),
        "source": report.source,
        "origin": report.origin,
        "command": report.command,
        "timing": timing(report.settings, report.environment),
        "environment": ", ".join(f"{k} {v}" for k, v in report.environment.items()),
        **facts,
        **report.metrics,
    }


def timing(settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str | None:
    """Return in words how latency was measured, None if it was not.

    Only milliseconds with the same timing can be compared.
    """
    latency = settings.get("latency")
    if not isinstance(latency, dict):
        return None
    options = {"batch": latency.get("batch"), "threads": latency.get("threads")}
    texts = [f"{name} {value}" for name, value in options.items() if value is not None]
    machine = environment.get("cpu") if isinstance(environment, dict) else None
    return ", ".join([*texts, *([str(machine)] if machine else [])])
