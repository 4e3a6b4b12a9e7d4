"""Solutions along strengths: warm starts, and only the rows that move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from prunekit.methods.gram_lasso.regression.problem import (
    FINE,
    GROWN,
    ROUGH,
    Certificate,
    Regression,
    RegressionSolver,
    Solution,
)
from prunekit.penalties.base import Penalty
from prunekit.validate import number

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
        solve = solver.solve if solver.selects else partial(active_rows, solver=solver)
        solution = solve(problem, penalty_at(lam), start=start)
        rows = (solution.beta != 0).any(dim=1).nonzero().flatten()
        known.append((lam, rows, solution.beta[rows]))
        yield solution


def active_rows(
    problem: Regression, penalty: Penalty, solver: RegressionSolver, start: Tensor
) -> Solution:
    """The solution, found on rows that are not known to be zero.

    Rows are known to be where the penalty says that their residual is not enough to move them
    (`Penalty.excess`). Others come in, those of the largest excess first and at most a third of
    what is there, until none is left or the gap of the whole problem is small. While many come in,
    parts are solved roughly; when that ends, rows that came in for nothing leave, once.
    """
    beta, active = start, (start != 0).any(dim=1)
    pull, steps, found, last, grew = None, 0, None, True, False
    while True:
        chosen = active.nonzero().flatten()
        left = problem.residual_of_few(beta)
        joining = _joining(penalty.excess(left), active)
        if found is not None or not len(joining) + len(chosen):
            seen = Certificate.of(problem, penalty, beta, pull, left)
            close = solver.close(seen, problem, beta)
            if close or (last and not len(joining)):
                good = close or found is None or found.converged
                return solver.told(Solution(beta, seen.objective, seen.gap, steps, good, pull))
        last = len(joining) <= GROWN * len(chosen)
        if last and grew:
            active, grew = (beta != 0).any(dim=1), False
        grew = grew or (not last and steps == 0)
        active[joining] = True
        chosen = active.nonzero().flatten()
        part = solver.scaled(FINE if last else ROUGH)
        found = part.solve(problem.rows(chosen), penalty, beta[chosen])
        beta = torch.zeros_like(beta).index_copy_(0, chosen, found.beta)
        if found.pull is not None:
            pull = torch.zeros_like(beta).index_copy_(0, chosen, found.pull)
        steps += found.iterations


def _joining(excess: Tensor, active: Tensor) -> Tensor:
    """Inactive rows with the largest excess; all of them where nothing is known of some."""
    excess = torch.where(active, 0.0, excess)
    count = int((excess > 0).sum())
    if not bool(excess.isinf().any()):
        count = min(count, max(FEW, int(active.sum()) // 3))
    return excess.topk(count).indices
