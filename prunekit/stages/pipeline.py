"""Commands made of stages: one of them, all of them, or none (inspect)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from prunekit.build import build
from prunekit.checks import choice, integer
from prunekit.console import say, table
from prunekit.criteria import Criterion
from prunekit.engine import ABSORB, Traced
from prunekit.errors import ConfigError, one_of
from prunekit.export import Export, Precision
from prunekit.graph import Placement
from prunekit.measure import TSNE, LatencyTest
from prunekit.problems import Problem
from prunekit.runs.pool import Pool
from prunekit.runs.report import Metrics, Report
from prunekit.runs.rundir import LOOKING, RunDir
from prunekit.runs.tables import comparison
from prunekit.selection import Selection
from prunekit.stages import STAGES, Made, Runtime, Settings, execute
from prunekit.stages.base import tracking_of
from prunekit.stages.head import head_of
from prunekit.stages.network import with_matrices, with_selections
from prunekit.stages.teacher import distill_of
from prunekit.stages.weights import architecture, weights_of
from prunekit.training import Schedule

DEFAULT = ("val_top1",)
Objectives = float | tuple[float, ...]
Tell = Callable[[str, Metrics | None], None]  # hears of a stage that begins, and of its metrics


def _untold(name: str, metrics: Metrics | None) -> None:
    """Nobody listens."""


def one(
    settings: Settings, directory: str, pool: Pool | None = None, tell: Tell = _untold
) -> Objectives:
    """Run the stage that `settings.stage` names; returns the objectives, for sweepers."""
    return _go((settings["stage"],), settings, RunDir(Path(directory).parent), pool, tell)


def run(
    settings: Settings, directory: str, pool: Pool | None = None, tell: Tell = _untold
) -> Objectives:
    """Run the pipeline in one run directory and print the comparison; returns the objectives."""
    names, place = pipeline(settings), RunDir(Path(directory).parent)
    if "finetune" in names and (distill := distill_of(settings)):
        distill.check(place.path)
    return _go(names, settings, place, pool, tell)


def _go(
    names: tuple[str, ...], settings: Settings, place: RunDir, pool: Pool | None, tell: Tell
) -> Objectives:
    """The stages, one after the other; `tell` hears of each, before and after.

    In a sweep, which has a pool, a run that another process works on is waited for: that of a sweep
    that was just killed, for instance.
    """
    check(settings, names)
    wanted = objectives(settings)
    source = settings["source"]
    with place.lock(wait=pool is not None):
        for name in names:
            tell(name, None)
            report, made = execute(STAGES[name], settings, place, source, pool)
            tell(name, report.metrics)
            _announce(place, report, made)
            source = source if name in LOOKING else None  # later stages start from what it left
    _show(place, names)
    return _reached(report, wanted)


def objectives(settings: Settings) -> tuple[str, ...]:
    """The metrics that a sweeper is to see."""
    names = settings["objectives"]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"objectives={names!r} is no list of metrics, such as [val_top1]")
    return tuple(names)


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


def check(settings: Settings, names: tuple[str, ...]) -> None:
    """Build every object that the stages will need, so that a mistake shows before any work."""
    from prunekit.stages.export import check_precision
    from prunekit.stages.sensitivity import Probe
    from prunekit.stages.sparsify import regularizer_of

    needed = {
        "pretrain": {"schedule.pretrain": Schedule, "model": nn.Module},
        "sparsify": {"schedule.sparsify": Schedule, "order": Problem, "placement": Placement},
        "sensitivity": {"sensitivity": Probe, "criterion": Criterion, "placement": Placement},
        "prune": {
            "placement": Placement,
            "criterion": Criterion,
            "selection": Selection,
            "schedule.between": Schedule,
        },
        "features": {"features": TSNE},
        "finetune": {"schedule.finetune": Schedule},
        "export": {"export": Export, "quantize": Precision, "latency": LatencyTest},
        "measure": {"latency": LatencyTest},
    }
    plain = {**settings, "model": architecture(settings)}
    for key, kind in (pair for name in names for pair in needed[name].items()):
        _build_as(kind, plain, key)
    if "sparsify" in names:
        regularizer_of(settings)
    if "finetune" in names:
        distill_of(settings)
        head_of(settings)
    if "export" in names:
        check_precision(build(settings["export"], "export"), build(settings["quantize"]))
    build(settings["dataset"], "dataset")
    _build_as(Runtime, settings, "runtime")
    tracking_of(settings)
    integer("seed", settings["seed"], at_least=0)
    weights_of(settings)
    choice("absorb", settings["absorb"], ABSORB)
    choice("statistics", settings["statistics"], ("kept", "recomputed"))
    for flag in ("overwrite", "keep_zeros", "over_norms", "channel_selection", "diagnose"):
        choice(flag, settings[flag], (True, False))


def _build_as(kind: type, settings: Settings, key: str) -> None:
    """Build the node at a dotted key and see that it is of the kind."""
    node: Any = settings
    for part in key.split("."):
        node = node[part]
    built = build(node, key)
    if not isinstance(built, kind):
        raise ConfigError(
            f"{key} describes a {type(built).__name__}, not a {kind.__name__}; give a _target_ "
            "that makes one"
        )


def _show(place: RunDir, names: tuple[str, ...]) -> None:
    """Print the tables of the stages that have one."""
    from prunekit.stages.export import show_files

    if "export" in names:
        show_files(place.stage("export").report().metrics)
    if "measure" in names:
        comparison(place.path / "measure" / "comparison.csv")


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


def inspect(settings: Settings, directory: str) -> None:
    """Print channel groups, what is frozen and why, and the cost at several widths."""
    import torch

    from prunekit.graph import Hinged
    from prunekit.runs.rundir import model_file
    from prunekit.selection import PerLayer, Scored
    from prunekit.stages.parts import load_source

    runtime: Runtime = build(settings["runtime"], "runtime")
    runtime.apply(settings["seed"])
    if settings["source"] is not None:
        model = load_source(model_file(settings["source"]), runtime).model
    else:
        model = build(architecture(settings), "model")
    example = torch.zeros(1, *build(settings["dataset"], "dataset").shape)
    for flag in ("over_norms", "channel_selection"):
        choice(flag, settings[flag], (True, False))
    if settings["channel_selection"]:
        with_selections(model, example)
    if with_matrices(model, example, build(settings["placement"], "placement")):
        hinged = [(n, m.site) for n, m in model.named_modules() if isinstance(m, Hinged)]
        rows = [(n, s.block, " and ".join(s.sides), s.start or "is the matrix") for n, s in hinged]
        table("matrices", ("layer", "block", "what may vanish", "start"), rows)
    traced = Traced.of(model, example, over_norms=settings["over_norms"])
    graph, cost = traced.graph, traced.cost()
    table("channel groups", ("group", "units", "made by", "read by"), graph.rows())
    for line in graph.stays():
        say(f"stays: {line}")
    told = {why for reasons in graph.frozen.values() for why in reasons.split("; ")}
    for note in graph.notes:
        if not any(why in note for why in told):
            say(f"note: {note}")
    scores: dict[str, Any] = {g.name: torch.arange(1.0, len(g.units) + 1) for g in graph.groups}
    predicted = []
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        removed = PerLayer(share).select(Scored(scores, graph, cost)).keep.removed
        predicted.append((f"{share:.0%}", f"{cost.params(removed):,}", f"{cost.macs(removed):,}"))
    table("predicted cost", ("width kept in every group", "parameters", "MACs"), predicted)
