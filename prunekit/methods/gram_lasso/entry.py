"""In which order columns of a regression become non-zero, and the published search for a count."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.regression.path import lasso_path
from prunekit.methods.gram_lasso.regression.problem import Regression, RegressionSolver
from prunekit.penalties import Penalty
from prunekit.schema import Checked, Count, Positive, Range, SomeShare

log = logging.getLogger(__name__)

PenaltyAt = Callable[[float], Penalty]
_NEAR = 1e-3  # strengths nearer than this are not told apart


class Ordering(Checked, ABC):
    """A way from the solutions of a regression to scores of its columns."""

    @abstractmethod
    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """A score per column, larger means keep; `layer` is what log lines call the problem."""


@dataclass(frozen=True)
class EntryOrder(Ordering):
    """Columns by the largest lam at which they are not zero.

    Ties go by their sum of absolute entries there, then by their largest similarity. Strengths fall
    geometrically to `least` of the one that leaves nothing, or to where all columns are alive; of
    `points` solutions, those that are not needed for it are spent where most columns enter at once.
    The order is nested in the count that is kept, and keeps what the published search would
    wherever that finds a count.
    """

    points: Annotated[int, Range(at_least=2), "strengths that are solved, at most"] = 25
    least: Annotated[
        float, Range(above=0, below=1), "smallest strength, of the one that leaves nothing"
    ] = 0.01

    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """Places in the order as shares, 1 for the first to enter."""
        return self._walked(problem, penalty_at, solver, along=0)

    def of_rows(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver
    ) -> Tensor:
        """The same for rows, which are input channels."""
        return self._walked(problem, penalty_at, solver, along=1)

    def _walked(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, along: int
    ) -> Tensor:
        entries = Entered.none(problem.cross.abs().amax(along))
        top = penalty_at(1.0).vanishing(problem.cross)
        if top > 0:
            walk = [top]  # the strengths so far, the current one last
            steps = _noted(strengths(top, self.least, self.points, entries), walk)
            for found in lasso_path(problem, penalty_at, solver, steps):
                entries.note(walk[-1], found.beta.abs().sum(along))
        return places(entries.entry, entries.mass, entries.largest)


@dataclass(frozen=True, eq=False)
class Entered:
    """At which strength every column (or row) was seen to enter, and how large it was there."""

    largest: Tensor  # the largest similarity; 0: nothing can make it enter
    entry: Tensor
    mass: Tensor

    @classmethod
    def none(cls, largest: Tensor) -> Entered:
        """No column has entered."""
        return cls(largest, torch.zeros_like(largest), torch.zeros_like(largest))

    @property
    def complete(self) -> bool:
        """Whether every column that can has entered."""
        return bool((self.entry[self.largest > 0] > 0).all())

    def note(self, lam: float, size: Tensor) -> None:
        """What a solution at `lam` says, in sums of absolute entries."""
        new = (size > 0) & (self.entry < lam)
        self.entry[new], self.mass[new] = lam, size[new]


def strengths(top: float, least: float, points: int, entries: Entered) -> Iterator[float]:
    """Strengths below `top`, chosen by what `entries` holds by the time each is asked for.

    They fall geometrically to `least` of `top` in `points` steps, and end where all columns have
    entered: small strengths are the dearest to solve for, so it pays not to overshoot. Each of what
    is left halves, in logarithms, the gap in which most columns entered together.
    """
    given = [top]
    for _ in range(points):
        given.append(given[-1] * least ** (1 / points))
        yield given[-1]
        if entries.complete:
            break
    while len(given) <= points:
        given.sort(reverse=True)
        crowds = [int((entries.entry == lam).sum()) for lam in given[1:]]
        wide = [high > low * (1 + _NEAR) for high, low in pairwise(given)]
        at = max(range(len(crowds)), key=lambda i: crowds[i] * wide[i])
        if crowds[at] * wide[at] < 2:
            return
        given.append(math.sqrt(given[at] * given[at + 1]))
        yield given[-1]


def _noted(steps: Iterable[float], walk: list[float]) -> Iterator[float]:
    """The steps, each put at the end of `walk` when it is taken."""
    for step in steps:
        walk.append(step)
        yield step


def places(*keys: Tensor) -> Tensor:
    """Places as shares, 1 for the best: by the first key, ties by the next; larger is better.

    An entry whose keys are all zero gets 0.
    """
    order = torch.arange(len(keys[0]))
    for key in reversed(keys):
        order = order[key[order].argsort(descending=True, stable=True)]
    place = torch.empty(len(order), dtype=torch.float64)
    place[order] = 1 - torch.arange(len(order), dtype=torch.float64) / len(order)
    return place * torch.stack([key != 0 for key in keys]).any(0)


@dataclass(frozen=True)
class PublishedSearch(Ordering):
    """Bisection of lam for a count of columns, layer by layer, as Algorithm 1 has it.

    Columns that are zero in the solution score zero and others their sum of absolute entries, so
    that `selection=zeros` removes what the search does. `keep` is the share of columns wanted. The
    bracket is from `low` to `high`, by default a thousandth of the strength that leaves nothing,
    and that strength (published: 1e-7 to 1e7); it is halved in logarithms until a count is met, it
    is narrower than `width`, or after `trials`. A tree may reach no count near the one wanted: the
    nearest is taken, and a warning says what was reached.
    """

    keep: Annotated[SomeShare, "share of columns wanted"] = 0.5
    low: Annotated[Positive | None, "of the bracket; published: 1e-7"] = None
    high: Annotated[Positive | None, "of the bracket; published: 1e7"] = None
    trials: Annotated[Count, "bisections, at most"] = 100
    width: Annotated[Positive, "of the bracket, at which the search ends"] = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ConfigError(f"low={self.low:g} is not below high={self.high:g}")

    def scores(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, layer: str
    ) -> Tensor:
        """Sums of absolute entries per column of the solution that is nearest in count."""
        wanted = max(1, round(self.keep * problem.cross.shape[1]))
        found = min(self.tried(problem, penalty_at, solver, wanted), key=lambda t: t.off(wanted))
        line = f"{layer}: {found.count} of {len(found.size)} columns at lam={found.lam:.4g}"
        if found.count != wanted:
            log.warning(f"{line}, asked for {wanted}: no strength that was tried reaches it")
        return found.size

    def tried(
        self, problem: Regression, penalty_at: PenaltyAt, solver: RegressionSolver, wanted: int
    ) -> list[Trial]:
        """Every trial of the search, in order."""
        top = penalty_at(1.0).vanishing(problem.cross) or 1.0
        high, low = self.high or top, self.low or 1e-3 * top
        trials: list[Trial] = []
        start = None
        while len(trials) < self.trials and high - low >= self.width:
            lam = math.sqrt(low * high)
            solution = solver.solve(problem, penalty_at(lam), start)
            start = solution.beta
            trials.append(Trial(lam, start.abs().sum(0)))
            if trials[-1].count == wanted:
                break
            low, high = (low, lam) if trials[-1].count < wanted else (lam, high)
        return trials or [Trial(high, torch.zeros_like(problem.cross[0]))]


@dataclass(frozen=True, eq=False)
class Trial:
    """A strength, and the sums of absolute entries per column that it left."""

    lam: float
    size: Tensor

    @property
    def count(self) -> int:
        """How many columns are not zero."""
        return int((self.size > 0).sum())

    def off(self, wanted: int) -> int:
        """How far the count is from the one wanted."""
        return abs(self.count - wanted)
