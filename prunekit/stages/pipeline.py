"""Commands made of stages: one of them, all of them, or none (inspect)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prunekit.console import say
from prunekit.errors import ConfigError, one_of
from prunekit.runs.report import Metrics, Report
from prunekit.runs.rundir import LOOKING, RunDir
from prunekit.runs.stage_cache import StageCache
from prunekit.stages import STAGES, Made, Request, Settings, Stage, execute, stage_named

DEFAULT = ("val_top1",)
Objectives = float | tuple[float, ...]
Tell = Callable[[str, Metrics | None], None]  # hears of a stage that begins, and of its metrics


def _untold(name: str, metrics: Metrics | None) -> None:
    """Nobody listens."""


def one(
    settings: Settings, directory: str, pool: StageCache | None = None, tell: Tell = _untold
) -> Objectives:
    """Run the stage that `settings.stage` names; returns the objectives, for sweepers."""
    return _go((settings["stage"],), settings, RunDir(Path(directory).parent), pool, tell)


def run(
    settings: Settings, directory: str, pool: StageCache | None = None, tell: Tell = _untold
) -> Objectives:
    """Run the pipeline in one run directory and print the comparison; returns the objectives."""
    return _go(pipeline(settings), settings, RunDir(Path(directory).parent), pool, tell)


def _go(
    names: tuple[str, ...], settings: Settings, place: RunDir, pool: StageCache | None, tell: Tell
) -> Objectives:
    """The stages, one after the other; `tell` hears of each, before and after.

    In a sweep, which has a pool, a run that another process works on is waited for: that of a sweep
    that was just killed, for instance.
    """
    request, stages = Request.of(settings), check(settings, names)
    wanted = tuple(request.root.objectives)
    for stage in stages:
        stage.check(place.path)
    source = request.root.source
    with place.lock(wait=pool is not None):
        for stage in stages:
            tell(stage.name, None)
            report, made = execute(stage, request, place, source, pool)
            tell(stage.name, report.metrics)
            _announce(place, report, made)
            source = source if stage.name in LOOKING else None  # later ones start from what it left
    for stage in stages:
        stage.show(place.stage(stage.name))
    return _reached(report, wanted)


def check(settings: Settings, names: Sequence[str]) -> list[Stage]:
    """Every stage with all of its parts built, so that a mistake shows before any work."""
    return [stage_named(name).of(settings) for name in names]


def _reached(report: Report, wanted: tuple[str, ...]) -> Objectives:
    """What the last stage reports of the metrics; one alone as a number."""
    for name in wanted:
        if name not in report.metrics and wanted != DEFAULT:
            raise ConfigError(
                f"objectives names {name!r}, which {report.stage} does not report; "
                f"{one_of(name, report.metrics)}"
            )
    found = [
        float(value if (value := report.metrics.get(n)) is not None else "nan") for n in wanted
    ]
    return found[0] if len(found) == 1 else tuple(found)


def pipeline(settings: Settings) -> tuple[str, ...]:
    """The stages that `run` goes through; without a penalty there is nothing to sparsify."""
    names = settings["pipeline"]
    if not isinstance(names, list) or not names:
        raise ConfigError(f"pipeline={names!r} is no list of stages")
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"pipeline names {name!r}, which is no stage; {one_of(name, STAGES)}")
    skipped = {"sparsify"} if settings["regularizer"]["name"] == "none" else set()
    return tuple(name for name in STAGES if name in names and name not in skipped)


def _announce(place: RunDir, report: Report, made: Made) -> None:
    metrics = report.metrics
    judged = next((key for key in ("top1", "val_top1") if metrics.get(key) is not None), None)
    top1 = f"{metrics[judged]:6.2f} %" if judged else "not measured"
    top1 += " (validation)" if judged == "val_top1" else ""
    took = f"{report.seconds:.1f} s" if made is Made.NOW else made.value
    say(
        f"{report.stage:<9} top-1 {top1}  {metrics['params']:>12,} parameters  "
        f"{metrics['macs']:>14,} MACs  {took}  -> {os.path.relpath(place.path / report.stage)}"
    )
    for note in report.notes if made is Made.NOW else ():
        say(f"          note: {note}")
