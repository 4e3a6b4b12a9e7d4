"""What is added to the loss: a penalty, the parameters that it acts on, and its solver."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite
from typing import Annotated

from prunekit.errors import ConfigError
from prunekit.penalties import Penalty
from prunekit.rows import Rows
from prunekit.schema import Checked
from prunekit.solvers import Solver, check_fit, fitting_strength
from prunekit.targets import Target
from prunekit.training.schedule import Schedule


@dataclass(frozen=True)
class Regularizer(Checked):
    """A penalty, its target, and its solver, which has to fit the penalty (ConfigError)."""

    penalty: Annotated[Penalty, "what is added to the loss"]
    target: Annotated[Target, "which parameters it acts on, row by row"]
    solver: Annotated[Solver, "how the sum is minimised"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fit(self.solver, self.penalty)

    def bind(
        self, blocks: Sequence[Rows], schedule: Schedule, batches: int
    ) -> tuple[Solver, tuple[str, ...]]:
        """Return a new solver that acts on the blocks, and notes on what was chosen.

        It is for a run of the schedule with so many batches in an epoch.
        """
        return self._bound(self.penalty, blocks), ()

    def _bound(self, penalty: Penalty, blocks: Sequence[Rows]) -> Solver:
        solver = copy.deepcopy(self.solver)
        solver.bind(penalty, blocks)
        return solver


@dataclass(frozen=True)
class FittedRegularizer(Regularizer):
    """A regularizer that chooses the strength of its penalty to fit the schedule.

    Without a loss, the penalty would empty half of the rows half-way, see `fitting_strength`: the
    loss resists it, and what is left needs time to recover. The strength of `penalty` is not used.
    """

    def bind(
        self, blocks: Sequence[Rows], schedule: Schedule, batches: int
    ) -> tuple[Solver, tuple[str, ...]]:
        """Return a new solver, and which strength its penalty has; ConfigError where none fits."""
        steps = -(-batches // schedule.accumulate)
        lengths = self.solver.prox_lengths(*schedule.rates(steps))
        lam = fitting_strength(self.penalty, blocks, _first_half(lengths))
        if lam is None:
            flat = self.penalty.flat_from
            hint = f", and is flat from {flat:g} on: raise it" if isfinite(flat) else ""
            raise ConfigError(
                f"no strength of {type(self.penalty).__name__} fits {schedule.epochs} epochs of "
                f"{steps} steps; it would have to empty half of the rows{hint}; set "
                "regularizer.lam, or train for more steps"
            )
        note = (
            f"regularizer.lam={lam:g} was chosen to fit: without a loss, half of the rows would "
            f"be zero half-way through {schedule.epochs * steps} steps"
        )
        return self._bound(self.penalty.with_strength(lam), blocks), (note,)


def _first_half(lengths: Sequence[float]) -> list[float]:
    """Return as many of the first lengths as add up to half of their sum, at least one."""
    totals = [*accumulate(lengths)]
    return [x for x, total in zip(lengths, totals, strict=True) if total - x < totals[-1] / 2]
