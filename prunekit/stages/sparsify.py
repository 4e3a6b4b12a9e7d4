"""Train under a sparsity penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.build import build
from prunekit.criteria import save_scores
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import Penalty
from prunekit.problems import Regularizer, Training
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import Solver
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.network import start
from prunekit.stages.parts import counts, history_writer, load_data, quality
from prunekit.surgery import save_model
from prunekit.targets import Target


def regularizer_of(settings: Settings) -> Regularizer:
    """Penalty, target and solver from the settings; raises ConfigError when they do not fit."""
    node = settings["regularizer"]
    if not isinstance(node.get("penalty"), Mapping) or not isinstance(node.get("target"), Mapping):
        raise ConfigError("regularizer has no penalty and target; choose regularizer=l21, say")
    return Regularizer(
        penalty=build(node["penalty"], "regularizer.penalty", Penalty),
        target=build(node["target"], "regularizer.target", Target),
        solver=build(settings["solver"], "solver", Solver),
    )


def sparsify(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Solve loss + penalty from the source model on; save weights with zeros, and scores."""
    regularizer = regularizer_of(settings)
    problem = build(settings["order"], "order")
    schedule = build(settings["schedule"]["sparsify"], "schedule.sparsify")
    data = load_data(settings, runtime)
    saved = start(settings, stage, data, runtime)
    model = saved.model
    graph = ChannelGraph.trace(model, data.example.to(runtime.device))
    write, last = history_writer(stage), {}

    def on_epoch(history: list[dict[str, Any]]) -> None:
        last.update(history[-1])
        write(history)

    training = Training(
        model=model,
        graph=graph,
        data=data,
        schedule=schedule,
        seed=settings["seed"],
        device=runtime.device,
        checkpoint=stage.checkpoint,
        on_epoch=on_epoch,
    )
    scores = problem.solve(regularizer, training)
    save_scores(stage.path / "scores.pt", scores)
    save_model(stage.path / "model.pt", model, saved.arch, saved.edits)
    small = {key: value for key, value in last.items() if key.startswith("below/")}
    alive = {f"alive/{name}": int((score > 0).sum()) for name, score in scores.items()}
    notes = [f"every unit of {name} is zero" for name, score in scores.items() if not score.any()]
    return Outcome(
        {**quality(model, data, runtime), **counts(model, data), **small, **alive},
        (*data.notes, *graph.notes, *notes),
    )
