"""Solutions along strengths: warm starts, and only the rows that move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from prunekit.checks import number
from prunekit.penalties.base import Penalty
from prunekit.solvers.regression.problem import (
    Certificate,
    Regression,
    RegressionSolver,
    Solution,
)

FEW = 8  # rows that are added at least, if so many stir


def lasso_path(
    problem: Regression,
    penalty_at: Callable[[float], Penalty],
    solver: RegressionSolver,
    lams: Iterable[float],
) -> Iterator[Solution]:
    """A solution for every strength, in the order in which they come; one is taken at a time.

    Each starts at the solution so far whose strength is nearest, and is of the whole problem.
    """
    known: list[tuple[float, Tensor, Tensor]] = []
    for lam in lams:
        number("lam", lam, above=0)
        start = torch.zeros_like(problem.cross)
        if known:
            _, rows, values = min(known, key=lambda solved: abs(math.log(solved[0] / lam)))
            start[rows] = values
        solution = active_rows(problem, penalty_at(lam), solver, start)
        rows = (solution.beta != 0).any(dim=1).nonzero().flatten()
        known.append((lam, rows, solution.beta[rows]))
        yield solution


def active_rows(
    problem: Regression, penalty: Penalty, solver: RegressionSolver, start: Tensor
) -> Solution:
    """The solution, found on rows that are not known to be zero.

    Rows are known to be where the penalty says that their residual is not enough to move them
    (`Penalty.excess`). Others come in, those of the largest excess first and at most as many as
    there are, until none is left: the dual point of the small problem is then one of the whole.
    """
    beta, active, steps, found = start, (start != 0).any(dim=1), 0, None
    while True:
        chosen = active.nonzero().flatten()
        left = problem.cross - problem.gram[:, chosen] @ beta[chosen]
        joining = _joining(penalty.excess(left), active)
        if found is not None and not len(joining):
            return replace(found, beta=beta, iterations=steps)
        active[joining] = True
        chosen = active.nonzero().flatten()
        if not len(chosen):
            seen = Certificate.of(problem, penalty, beta)
            return Solution(beta, seen.objective, seen.gap, steps, True)
        found = solver.solve(problem.rows(chosen), penalty, beta[chosen])
        beta = torch.zeros_like(beta)
        beta[chosen] = found.beta
        steps += found.iterations


def _joining(excess: Tensor, active: Tensor) -> Tensor:
    """Inactive rows with the largest excess; all of them where nothing is known of some."""
    excess = torch.where(active, 0.0, excess)
    count = int((excess > 0).sum())
    if not bool(excess.isinf().any()):
        count = min(count, max(FEW, int(active.sum())))
    return excess.topk(count).indices
