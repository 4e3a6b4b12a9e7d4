"""Train the narrow network without a penalty."""

from __future__ import annotations

from torch import nn

from prunekit.build import build
from prunekit.checks import choice
from prunekit.data import Data
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import Hold, Solver
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.parts import counts, history_writer, load_data, load_source, quality
from prunekit.surgery import save_model
from prunekit.targets import Entries
from prunekit.training import fit


def finetune(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Tune all weights; with `keep_zeros`, entries that are exactly zero stay zero."""
    choice("keep_zeros", settings["keep_zeros"], (True, False))
    schedule = build(settings["schedule"]["finetune"], "schedule.finetune")
    saved = load_source(stage.source, runtime)
    model = saved.model
    data = load_data(settings, runtime)
    fit(
        model,
        data,
        schedule,
        solver=_held(model, data, runtime) if settings["keep_zeros"] else None,
        seed=settings["seed"],
        device=runtime.device,
        checkpoint=stage.checkpoint,
        label="finetune",
        on_epoch=history_writer(stage),
    )
    save_model(stage.path / "model.pt", model, saved.arch, saved.edits)
    return Outcome({**quality(model, data, runtime), **counts(model, data)}, data.notes)


def _held(model: nn.Module, data: Data, runtime: Runtime) -> Solver:
    graph = ChannelGraph.trace(model, data.example.to(runtime.device))
    solver = Hold()
    solver.bind(L1(0.0), Entries().rows(model, graph))
    return solver
