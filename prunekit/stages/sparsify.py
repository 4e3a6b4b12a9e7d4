"""Train under a sparsity penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from prunekit.build import build
from prunekit.criteria import save_scores
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import Penalty
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import Solver
from prunekit.stages.common import counts, history_writer, quality
from prunekit.stages.network import FromNetwork
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Read, Settings, Stage
from prunekit.surgery import save_model
from prunekit.targets import Target
from prunekit.training import Order, Regularizer, Schedule, Training


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


@dataclass(frozen=True)
class Sparsify(FromNetwork, Stage):
    """Train from the source model on under a penalty; save weights with zeros, and scores."""

    name = "sparsify"
    regularizer: Annotated[Regularizer, Read("regularizer", "solver", make=regularizer_of)]
    order: Annotated[Order, "in which layers are trained under the penalty"]
    schedule: Annotated[Schedule, Read("schedule.sparsify")]

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Solve loss + penalty."""
        data = self.data(runtime)
        saved = self.start(place, data, runtime)
        model = saved.model
        graph = ChannelGraph.trace(model, data.example.to(runtime.device))
        write, last = history_writer(place), {}

        def on_epoch(history: list[dict[str, Any]]) -> None:
            last.update(history[-1])
            write(history)

        training = Training(
            model=model,
            graph=graph,
            data=data,
            schedule=self.schedule,
            seed=self.seed,
            device=runtime.device,
            checkpoint=place.checkpoint,
            on_epoch=on_epoch,
        )
        scores = self.order.solve(self.regularizer, training)
        save_scores(place.path / "scores.pt", scores)
        save_model(place.path / "model.pt", model, saved.arch, saved.edits)
        small = {key: value for key, value in last.items() if key.startswith("below/")}
        alive = {f"alive/{name}": int((score > 0).sum()) for name, score in scores.items()}
        notes = [f"every unit of {name} is zero" for name, one in scores.items() if not one.any()]
        return Outcome(
            {**quality(model, data, runtime), **counts(model, data), **small, **alive},
            (*data.notes, *graph.notes, *notes),
        )
