"""Penalised network training: which rows, which penalty, which solver, in which order."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn

from prunekit.data import Data
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1, Penalty
from prunekit.rows import Rows
from prunekit.schema import Checked, NotNegative
from prunekit.solvers import KeepZeros, Solver
from prunekit.solvers.base import check_fit
from prunekit.targets import Target, unit_scores
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.loop import fit
from prunekit.training.schedule import Schedule

History = list[dict[str, Any]]
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class Regularizer(Checked):
    """What is penalised and how: penalty, target and solver, checked to fit on construction."""

    penalty: Annotated[Penalty, "what is added to the loss"]
    target: Annotated[Target, "which parameters it acts on, row by row"]
    solver: Annotated[Solver, "how the sum is minimised"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fit(self.solver, self.penalty)

    def bound(self, blocks: Sequence[Rows]) -> Solver:
        """A fresh solver that acts on the blocks."""
        solver = copy.deepcopy(self.solver)
        solver.bind(self.penalty, blocks)
        return solver


@dataclass(frozen=True, eq=False)
class Training:
    """The network, its data and how to train it; `checkpoint` is where progress is kept."""

    model: nn.Module
    graph: ChannelGraph
    data: Data
    schedule: Schedule
    seed: int = 0
    device: str = "cpu"
    checkpoint: Checkpoint | None = None
    on_epoch: Callable[[History], None] | None = None


class Order(Checked, ABC):
    """An order in which the layers of a network are trained under a penalty."""

    @abstractmethod
    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train the model in place; returns a score for every unit that the penalty reached.

        A score is the 2-norm of all penalised rows of the unit in the solver's solution: zero
        means that the solver removed it.
        """


class StopRule(Checked, ABC):
    """A rule that ends sparse training before its schedule does."""

    @abstractmethod
    def watch(
        self, training: Training, blocks: Sequence[Rows], solver: Solver
    ) -> Callable[[], tuple[dict[str, float], bool]]:
        """Return what `fit` calls after every epoch: metrics of the epoch, and whether to stop."""


@dataclass(frozen=True)
class Joint(Order):
    """All layers at once: the penalties of all blocks are summed (SSR eq. 4 over layers).

    `norms="frozen"` keeps batch-norm statistics fixed, without which the norm of a filter that is
    followed by a batch norm says nothing about its effect. `decay="free"` takes weight decay off
    the penalised parameters. All other parameters have the schedule's rate times `others`.
    """

    norms: Annotated[Literal["live", "frozen"], "batch-norm statistics while it trains"] = "live"
    decay: Annotated[Literal["all", "free"], "weight decay on penalised parameters"] = "all"
    others: Annotated[NotNegative, "rate of all that is not penalised, times the schedule's"] = 1.0
    until: Annotated[StopRule | None, "when to stop before the schedule ends, see order=hinge"] = (
        None
    )

    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train once; see Order."""
        blocks = regularizer.target.rows(training.model, training.graph)
        solver = regularizer.bound(blocks)
        fit(
            training.model,
            training.data,
            training.schedule,
            solver=solver,
            params=self._params(training.model, blocks),
            frozen=_norms(training.model) if self.norms == "frozen" else (),
            seed=training.seed,
            device=training.device,
            checkpoint=training.checkpoint,
            label="sparsify",
            watch=self.until.watch(training, blocks, solver) if self.until else None,
            on_epoch=training.on_epoch,
        )
        solver.finish()
        return unit_scores(training.graph, blocks, solver.solution())

    def _params(self, model: nn.Module, blocks: Sequence[Rows]) -> list[Any]:
        """One group of parameters where all are treated alike, else one for each role too."""
        role = {id(param): block.role for block in blocks for param in block.parameters}
        if self.decay == "all" and self.others == 1 and not any(role.values()):
            return list(model.parameters())
        decay = {"weight_decay": 0.0} if self.decay == "free" else {}
        rest = [param for param in model.parameters() if id(param) not in role]
        groups: list[Any] = [{"params": rest, "lr_scale": self.others}] if rest else []
        for wanted in dict.fromkeys(role.values()):
            params = [p for p in model.parameters() if role.get(id(p)) == wanted]
            groups.append({"params": params, **decay})
        return groups


@dataclass(frozen=True)
class Layerwise(Order):
    """Front to back, one layer at a time, as the released SSR code does.

    While a layer is penalised only its own parameters train, for the whole schedule; then, with
    `between`, all parameters are tuned while the zero rows stay zero.
    """

    between: Annotated[Schedule | None, "tunes all weights after each layer; null: nothing"] = None

    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train layer by layer; see Order."""
        blocks = regularizer.target.rows(training.model, training.graph)
        solutions: list[Tensor] = []
        past: History = []
        for index, block in enumerate(blocks):
            solver = regularizer.bound([block])
            past = self._phase(training, past, f"{index}-{block.name}", training.schedule, solver)
            solver.finish()
            solutions.extend(solver.solution())
            if self.between is not None:
                past = self._tune(training, past, blocks[: index + 1])
        return unit_scores(training.graph, blocks, solutions)

    def _tune(self, training: Training, past: History, done: Sequence[Rows]) -> History:
        assert self.between is not None
        hold = KeepZeros()
        hold.bind(L1(0.0), done)
        return self._phase(training, past, f"{len(done)}-tune", self.between, hold)

    def _phase(
        self, training: Training, past: History, name: str, schedule: Schedule, solver: Solver
    ) -> History:
        """One fit with a checkpoint of its own: a finished phase only loads."""
        model, place = training.model, training.checkpoint
        module = model if name.endswith("-tune") else model.get_submodule(solver.blocks[0].name)
        report = training.on_epoch or (lambda history: None)
        history = fit(
            model,
            training.data,
            schedule,
            solver=solver,
            params=list(module.parameters()),
            seed=training.seed + len(past),
            device=training.device,
            checkpoint=place.phase(name) if place else None,
            label=name,
            on_epoch=lambda rows: report([*past, *({"phase": name, **row} for row in rows)]),
        )
        return [*past, *({"phase": name, **row} for row in history)]


def _norms(model: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module for module in model.modules() if isinstance(module, _NORMS))
