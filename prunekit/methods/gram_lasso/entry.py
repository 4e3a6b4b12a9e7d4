"""The order in which columns of a regression become non-zero, and a search for a number of them."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.regression import (
    Regression,
    RegressionSolver,
    Solution,
    solve_active_rows,
)
from prunekit.penalties import Penalty
from prunekit.schema import Checked, Count, Positive, Range, SomeShare
from prunekit.validate import number

log = logging.getLogger(__name__)

PenaltyAt = Callable[[float], Penalty]
_NEAR = 1e-3  # relative: strengths that are closer count as equal


class Ordering(Checked, ABC):
    """Computes scores of the columns of a regression from its solutions."""

    @abstractmethod
    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """Return a score per column, larger for more important ones.

        `layer` is the name of the problem in log messages.
        """


@dataclass(frozen=True)
class EntryOrder(Ordering):
    """Orders columns by the largest lam at which they are not zero.

    Ties are broken by the sum of absolute entries at that lam, then by the largest similarity. The
    problem is solved at `points` strengths at most. They fall geometrically, from the one that
    leaves nothing to `least` of it, until all columns are non-zero. The remaining strengths go
    where most columns enter together. Keeping fewer columns keeps a subset. If `LambdaBisection`
    finds the requested number of columns, both keep the same ones.
    """

    points: Annotated[int, Range(at_least=2), "strengths that are solved, at most"] = 25
    least: Annotated[
        float,
        Range(above=0, below=1),
        "smallest strength, relative to the one that leaves nothing",
    ] = 0.01

    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """Return ranks as shares, 1 for the first column to enter."""
        return self._ranks(problem, penalty_at, solver, dim=0)

    def row_scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver
    ) -> Tensor:
        """Return the ranks of rows, which are input channels."""
        return self._ranks(problem, penalty_at, solver, dim=1)

    def _ranks(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, dim: int
    ) -> Tensor:
        """Return ranks as shares; sums over `dim` of beta say what is non-zero."""
        entries = Entries.empty(problem.cross.abs().amax(dim))
        top = penalty_at(1.0).lam_max(problem.cross)
        if top > 0:
            lams = [top]  # the current one last
            steps = _recorded(strengths(top, self.least, self.points, entries), lams)
            for solution in lasso_path(problem, penalty_at, solver, steps):
                entries.record(lams[-1], solution.beta.abs().sum(dim))
        return rank_shares(entries.lam, entries.mass, entries.largest)


def lasso_path(
    problem: Regression,
    penalty_at: Callable[[float], Penalty],
    solver: RegressionSolver,
    lams: Iterable[float],
) -> Iterator[Solution]:
    """Yield a solution of the whole problem for every strength, which is taken when it is needed.

    Each solution is warm-started at the previous one with the nearest strength.
    """
    previous: list[tuple[float, Tensor, Tensor]] = []  # lam, non-zero rows, their values
    for lam in lams:
        number("lam", lam, above=0)
        start = torch.zeros_like(problem.cross)
        if previous:
            _, rows, values = min(previous, key=lambda solved: abs(math.log(solved[0] / lam)))
            start[rows] = values
        finds_active = solver.finds_active_entries
        solve = solver.solve if finds_active else partial(solve_active_rows, solver=solver)
        solution = solve(problem, penalty_at(lam), start=start)
        rows = (solution.beta != 0).any(dim=1).nonzero().flatten()
        previous.append((lam, rows, solution.beta[rows]))
        yield solution


@dataclass(frozen=True, eq=False)
class Entries:
    """The largest strength at which every column (or row) was non-zero so far, and its size there.

    `largest` is the largest similarity of the column; if it is 0, the column never enters. `lam` is
    the strength and `mass` the sum of absolute entries, both 0 for columns that have not entered.
    """

    largest: Tensor
    lam: Tensor
    mass: Tensor

    @classmethod
    def empty(cls, largest: Tensor) -> Entries:
        """Return the state in which no column has entered."""
        return cls(largest, torch.zeros_like(largest), torch.zeros_like(largest))

    @property
    def complete(self) -> bool:
        """True if every column that can enter has entered."""
        return bool((self.lam[self.largest > 0] > 0).all())

    def record(self, lam: float, size: Tensor) -> None:
        """Update with the sums of absolute entries of the solution at `lam`."""
        new = (size > 0) & (self.lam < lam)
        self.lam[new], self.mass[new] = lam, size[new]


def strengths(top: float, least: float, points: int, entries: Entries) -> Iterator[float]:
    """Yield at most `points` strengths below `top`, each chosen from the current `entries`.

    They fall geometrically to `least` of `top` in `points` steps, and stop once all columns have
    entered, because small strengths take longest to solve. Each remaining one halves, in
    logarithms, the interval in which most columns entered together.
    """
    lams = [top]
    for _ in range(points):
        lams.append(lams[-1] * least ** (1 / points))
        yield lams[-1]
        if entries.complete:
            break
    while len(lams) <= points:
        lams.sort(reverse=True)
        counts = [int((entries.lam == lam).sum()) for lam in lams[1:]]
        divisible = [high > low * (1 + _NEAR) for high, low in pairwise(lams)]
        index = max(range(len(counts)), key=lambda i: counts[i] * divisible[i])
        if counts[index] * divisible[index] < 2:
            return
        lams.append(math.sqrt(lams[index] * lams[index + 1]))
        yield lams[-1]


def _recorded(steps: Iterable[float], lams: list[float]) -> Iterator[float]:
    """Yield the steps, and append each to `lams` when it is taken."""
    for step in steps:
        lams.append(step)
        yield step


def rank_shares(*keys: Tensor) -> Tensor:
    """Return ranks as shares, 1 for the largest: by the first key, ties by the next ones.

    An entry whose keys are all zero gets 0.
    """
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[key[order].argsort(descending=True, stable=True)]
    share = torch.empty(len(order), dtype=torch.float64)
    share[order] = 1 - torch.arange(len(order), dtype=torch.float64) / len(order)
    return share * torch.stack([key != 0 for key in keys]).any(0)


@dataclass(frozen=True)
class LambdaBisection(Ordering):
    """Bisects lam for a number of columns, layer by layer, as in Algorithm 1 of Liu et al. 2025.

    Columns that are zero in the solution score 0 and others their sum of absolute entries, so that
    `selection=zeros` removes what the search does. The bracket is halved in logarithms until the
    number is met, or `high` - `low` is below `width`, or after `trials` solutions. A tree may have
    no strength for a number; then the nearest one is used, with a warning.
    """

    keep: Annotated[SomeShare, "share of columns to keep"] = 0.5
    low: Annotated[
        Positive | None, "lower end of the bracket, published: 1e-7; null: a thousandth of high"
    ] = None
    high: Annotated[
        Positive | None, "upper end of the bracket, published: 1e7; null: what leaves nothing"
    ] = None
    trials: Annotated[Count, "bisections, at most"] = 100
    width: Annotated[Positive, "width of the bracket at which the search ends"] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"low={self.low:g} is not below high={self.high:g}")

    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """Return sums of absolute entries per column, of the trial that is nearest in number."""
        count = max(1, round(self.keep * problem.cross.shape[1]))
        trials = self._search(problem, penalty_at, solver, count)
        nearest = min(trials, key=lambda trial: abs(trial.count - count))
        if nearest.count != count:
            log.warning(
                f"{layer}: {nearest.count} of {len(nearest.size)} columns at "
                f"lam={nearest.lam:.4g}, asked for {count}: no strength that was tried reaches it"
            )
        return nearest.size

    def _search(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, count: int
    ) -> list[_Trial]:
        """Return every trial of the bisection, in order."""
        top = penalty_at(1.0).lam_max(problem.cross) or 1.0
        high, low = self.high or top, self.low or 1e-3 * top
        trials: list[_Trial] = []
        start = None
        while len(trials) < self.trials and high - low >= self.width:
            lam = math.sqrt(low * high)
            solution = solver.solve(problem, penalty_at(lam), start)
            start = solution.beta
            trials.append(_Trial(lam, start.abs().sum(0)))
            if trials[-1].count == count:
                break
            low, high = (low, lam) if trials[-1].count < count else (lam, high)
        return trials or [_Trial(high, torch.zeros_like(problem.cross[0]))]


@dataclass(frozen=True, eq=False)
class _Trial:
    """A strength, and the sums of absolute entries per column of its solution."""

    lam: float
    size: Tensor

    @property
    def count(self) -> int:
        """The number of columns that are not zero."""
        return int((self.size > 0).sum())
