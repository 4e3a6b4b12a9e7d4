"""Training under a penalty: all layers at once, or one layer after the other."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.data import Data
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.rows import Rows
from prunekit.schema import Checked, NotNegative
from prunekit.solvers import KeepZeros, Solver
from prunekit.targets import unit_scores
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.loop import EpochMetrics, Trainable, fit
from prunekit.training.regularizer import Regularizer
from prunekit.training.schedule import Schedule

log = logging.getLogger(__name__)

History = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Training:
    """A network, its data, and how to train it; `checkpoint` is the file of its progress.

    `on_note` gets what a report must say about the penalty at the end.
    """

    model: nn.Module
    graph: ChannelGraph
    data: Data
    schedule: Schedule
    seed: int = 0
    device: str = "cpu"
    checkpoint: Checkpoint | None = None
    on_epoch: Callable[[History], None] | None = None
    on_note: Callable[[str], None] = log.warning

    def bind(self, regularizer: Regularizer, blocks: Sequence[Rows], prefix: str = "") -> Solver:
        """Return a solver that acts on the blocks; pass on which strength was chosen, if any."""
        batches = self.data.train.steps(self.schedule.batch)
        solver, notes = regularizer.bind(blocks, self.schedule, batches)
        for note in notes:
            self.on_note(f"{prefix}{note}")
        return solver

    def finish(self, solver: Solver, prefix: str = "") -> list[Tensor]:
        """End a phase: write the solution into the network, pass the notes on, and return it."""
        solver.finish()
        for note in solver.notes():
            self.on_note(f"{prefix}{note}")
        return solver.solution()


class Order(Checked, ABC):
    """The order in which the layers of a network are trained under a penalty."""

    @abstractmethod
    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train the model in place and return scores of units by group, see `unit_scores`.

        A score is the 2-norm of all penalised rows of the unit in the solver's solution. Zero means
        that the unit can be removed.
        """


class StopRule(Checked, ABC):
    """A rule that ends sparse training before its schedule does."""

    @abstractmethod
    def watch(
        self, training: Training, blocks: Sequence[Rows], solver: Solver
    ) -> Callable[[], tuple[dict[str, float], bool]]:
        """Return a function that `fit` calls after every epoch for metrics and whether to stop."""


@dataclass(frozen=True)
class Joint(Order):
    """Trains all layers at once: the penalties of all blocks are summed (SSR eq. 4 over layers).

    `norms="frozen"` keeps batch-norm statistics fixed; otherwise a batch norm rescales its inputs,
    so the norm of the filter before it says nothing about its effect. `decay="free"` exempts the
    penalised parameters from weight decay. All others have the schedule's rate times `others`.
    """

    norms: Annotated[Literal["live", "frozen"], "batch-norm statistics during training"] = "live"
    decay: Annotated[Literal["all", "free"], "weight decay on penalised parameters"] = "all"
    others: Annotated[NotNegative, "factor on the rate of parameters that are not penalised"] = 1.0
    until: Annotated[StopRule | None, "when to stop before the schedule ends, see order=hinge"] = (
        None
    )

    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train under the sum of all penalties."""
        blocks = regularizer.target.rows(training.model, training.graph)
        solver = training.bind(regularizer, blocks)
        fit(
            training.model,
            training.data,
            training.schedule,
            solver=solver,
            params=self._parameter_groups(training.model, blocks),
            frozen=_batch_norms(training.model) if self.norms == "frozen" else (),
            seed=training.seed,
            device=training.device,
            checkpoint=training.checkpoint,
            label="sparsify",
            watch=self.until.watch(training, blocks, solver) if self.until else None,
            on_epoch=training.on_epoch,
        )
        return unit_scores(training.graph, blocks, training.finish(solver))

    def _parameter_groups(self, model: nn.Module, blocks: Sequence[Rows]) -> list[Trainable]:
        """Return all parameters, or groups of the unpenalised ones and of each role."""
        roles = {id(param): block.role for block in blocks for param in block.parameters}
        if self.decay == "all" and self.others == 1 and not any(roles.values()):
            return [*model.parameters()]
        decay = {"weight_decay": 0.0} if self.decay == "free" else {}
        rest = [param for param in model.parameters() if id(param) not in roles]
        groups: list[Trainable] = [{"params": rest, "lr_scale": self.others}] if rest else []
        for role in dict.fromkeys(roles.values()):
            params = [p for p in model.parameters() if roles.get(id(p)) == role]
            groups.append({"params": params, **decay})
        return groups


@dataclass(frozen=True)
class Layerwise(Order):
    """Trains one layer after the other, front to back, as the released SSR code does.

    While a layer is penalised, only its own parameters are trained, for the whole schedule. Then,
    with `between`, all parameters are trained while the zero rows stay zero.
    """

    between: Annotated[Schedule | None, "tunes all weights after each layer; null: nothing"] = None

    def solve(self, regularizer: Regularizer, training: Training) -> dict[str, Tensor]:
        """Train layer by layer."""
        blocks = regularizer.target.rows(training.model, training.graph)
        solutions: list[Tensor] = []
        past: History = []
        for index, block in enumerate(blocks):
            solver = training.bind(regularizer, [block], f"{block.name}: ")
            past = self._phase(training, past, f"{index}-{block.name}", training.schedule, solver)
            solutions.extend(training.finish(solver, f"{block.name}: "))
            if self.between is not None:
                past = self._tune(training, past, blocks[: index + 1], self.between)
        return unit_scores(training.graph, blocks, solutions)

    def _tune(
        self, training: Training, past: History, done: Sequence[Rows], between: Schedule
    ) -> History:
        solver = KeepZeros()
        solver.bind(L1(0.0), done)
        return self._phase(training, past, f"{len(done)}-tune", between, solver)

    def _phase(
        self, training: Training, past: History, name: str, schedule: Schedule, solver: Solver
    ) -> History:
        """Train one phase with its own checkpoint; a finished phase is only loaded."""
        model, checkpoint = training.model, training.checkpoint
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
            checkpoint=checkpoint.phase(name) if checkpoint else None,
            label=name,
            on_epoch=lambda epochs: report(_with_phase(past, name, epochs)),
        )
        return _with_phase(past, name, history)


def _with_phase(past: History, name: str, epochs: Sequence[EpochMetrics]) -> History:
    return [*past, *({"phase": name, **metrics} for metrics in epochs)]


def _batch_norms(model: nn.Module) -> tuple[nn.Module, ...]:
    return tuple(module for module in model.modules() if isinstance(module, _BatchNorm))
