"""The stage that trains under a sparsity penalty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from prunekit.build import Settings, build
from prunekit.criteria import save_scores
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import Penalty
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import Solver
from prunekit.stages.network import FromNetwork, measure_accuracy, measure_size
from prunekit.stages.settings import Runtime
from prunekit.stages.stage import FromSettings, Stage, history_writer
from prunekit.surgery import save_model
from prunekit.targets import Target
from prunekit.training import FittedRegularizer, Order, Regularizer, Schedule, Training

_ANY = 1e-4  # a strength where another one is chosen later


def build_regularizer(settings: Settings) -> Regularizer:
    """Build penalty, target and solver from the settings; ConfigError when they do not fit."""
    node = settings["regularizer"]
    if not isinstance(node.get("penalty"), Mapping) or not isinstance(node.get("target"), Mapping):
        raise ConfigError("regularizer has no penalty and target; choose regularizer=l21, say")
    penalty, kind = dict(node["penalty"]), Regularizer
    if penalty.get("lam", 1.0) is None:
        penalty, kind = _with_any_strength(penalty, node.get("flat")), FittedRegularizer
    return kind(
        penalty=build(penalty, "regularizer.penalty", Penalty),
        target=build(node["target"], "regularizer.target", Target),
        solver=build(settings["solver"], "solver", Solver),
    )


def _with_any_strength(penalty: Settings, flat: float | None) -> dict[str, Any]:
    """Return settings of a penalty that has a strength, and turns flat at `flat` if anywhere."""
    shape = {} if flat is None else {key: flat / _ANY for key in penalty if penalty[key] is None}
    return {**penalty, **shape, "lam": _ANY}


@dataclass(frozen=True)
class Sparsify(FromNetwork, Stage):
    """Trains the source model under a penalty, and saves its weights and a score per unit."""

    name = "sparsify"
    regularizer: Annotated[
        Regularizer, FromSettings("regularizer", "solver", make=build_regularizer)
    ]
    order: Annotated[Order, "in which order layers are trained under the penalty"]
    schedule: Annotated[Schedule, FromSettings("schedule.sparsify")]

    def check_network(self) -> None:
        """Raise ConfigError where the network has no rows that the target could penalise."""
        if (sketch := self.sketch()) is None:
            return
        # balancing reads the weights, which a sketch does not have
        if not replace(self.regularizer.target, balance=False).rows(*sketch):
            raise ConfigError("the target has no rows to penalise; choose another target or layers")

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Minimise loss + penalty; write the model file and the scores."""
        data = self.data(runtime)
        saved = self.start(stage_dir, data, runtime)
        model = saved.model
        graph = ChannelGraph.trace(model, data.example.to(runtime.device))
        write, last_epoch = history_writer(stage_dir), {}
        notes: list[str] = []

        def on_epoch(history: list[dict[str, Any]]) -> None:
            last_epoch.update(history[-1])
            write(history)

        training = Training(
            model=model,
            graph=graph,
            data=data,
            schedule=self.schedule,
            seed=self.seed,
            device=runtime.device,
            checkpoint=stage_dir.checkpoint,
            on_epoch=on_epoch,
            on_note=notes.append,
        )
        scores = self.order.solve(self.regularizer, training)
        save_scores(stage_dir.path / "scores.pt", scores)
        save_model(stage_dir.path / "model.pt", model, saved.arch, saved.edits)
        small = {key: value for key, value in last_epoch.items() if key.startswith("below/")}
        alive = {f"alive/{name}": int((score > 0).sum()) for name, score in scores.items()}
        notes += [f"every unit of {name} is zero" for name, s in scores.items() if not s.any()]
        return Outcome(
            {
                **measure_accuracy(model, data, runtime),
                **measure_size(model, data),
                **small,
                **alive,
            },
            (*data.notes, *graph.notes, *notes),
        )
