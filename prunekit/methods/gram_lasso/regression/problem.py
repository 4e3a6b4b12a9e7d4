"""Regression of many responses on tables of inner products, its gap, and what a solver is."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.penalties.base import Penalty
from prunekit.schema import Checked, Count, Positive
from prunekit.solvers.base import check_fit
from prunekit.validate import number

log = logging.getLogger(__name__)

EVERY = 10  # steps between the first looks at the gap
ROUGH, FINE = 30.0, 0.5  # of the tolerances, for parts of a problem that grow yet, or no more
GROWN = 0.05  # of a part: it grows yet
ROUNDING = 1e-13  # of the energy: gaps below it are rounding
Iterate = tuple[Tensor, Tensor | None]


@dataclass(frozen=True, eq=False)
class Regression:
    """min over beta of 1/2 tr(beta^T G beta) - tr(A^T beta) + energy / 2, and a penalty of beta.

    `gram` is G (inputs, inputs), `cross` A (inputs, outputs), both double; `energy` is the sum of
    the responses' squared norms, so that the objective is half the squared error (Liu et al.
    2025, eq. 4).
    """

    gram: Tensor
    cross: Tensor
    energy: float

    def __post_init__(self) -> None:
        inputs = len(self.gram)
        if self.gram.shape != (inputs, inputs) or self.cross.shape[:1] != (inputs,):
            raise ConfigError(
                f"tables of shapes {tuple(self.gram.shape)} and {tuple(self.cross.shape)} do not "
                "fit; the first must be square with as many rows as the second"
            )
        if self.gram.dtype != torch.float64 or self.cross.dtype != torch.float64:
            raise ConfigError(
                "tables of a regression must be double; gaps are lost in rounding else"
            )
        if not bool(self.gram.isfinite().all() and self.cross.isfinite().all()):
            raise ConfigError("tables of a regression are not finite; leave dead channels out")
        number("energy", self.energy, at_least=0)

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues, none below 0, and eigenvectors of G; computed once."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values.clamp_min(0), vectors

    @cached_property
    def steepest(self) -> float:
        """The Lipschitz constant of the gradient: the largest eigenvalue of G, rounded up."""
        return float(torch.linalg.eigvalsh(self.gram)[-1]) * (1 + 1e-9)

    @property
    def step(self) -> float:
        """One over `steepest`; 1 where there is no slope at all."""
        return 1 / self.steepest if self.steepest > 0 else 1.0

    def residual(self, beta: Tensor) -> Tensor:
        """A - G beta: what the regressors have in common with what is left; minus the gradient."""
        return torch.addmm(self.cross, self.gram, beta, alpha=-1)

    def residual_of_few(self, beta: Tensor) -> Tensor:
        """The same, fast where most rows of beta are zero."""
        rows = (beta != 0).any(dim=1)
        return torch.addmm(self.cross, self.gram[:, rows], beta[rows], alpha=-1)

    def rows(self, active: Tensor) -> Regression:
        """The problem in which only these rows (indices) may be non-zero."""
        return Regression(self.gram[active][:, active], self.cross[active], self.energy)


@dataclass(frozen=True)
class Certificate:
    """The objective at a point, what it is below that of zero, and the duality gap, if any."""

    objective: float
    fit: float
    gap: float | None

    @classmethod
    def of(
        cls,
        problem: Regression,
        penalty: Penalty,
        beta: Tensor,
        pull: Tensor | None = None,
        left: Tensor | None = None,
        enough: Callable[[float, float], float] | None = None,
    ) -> Certificate:
        """From the tables alone; `pull` is what the solver's dual variables take off.

        With the residual T, the factor t that makes it feasible and the squared error q, the gap
        is value - t <beta, T> + (1 - t)^2 q / 2: no difference of large numbers. `left` is T, if it
        is known. A gap above enough(objective, fit) may be given as a larger one, for less work.
        """
        left = problem.residual(beta) if left is None else left
        value = float(penalty.value(beta))
        both, inner = float((problem.cross * beta).sum()), float((left * beta).sum())
        quadratic = both - inner
        fit = both - quadratic / 2 - value
        objective, gap, needed = problem.energy / 2 - fit, None, 0.0
        if enough is not None and inner > 0:
            needed = (value - enough(objective, fit)) / inner
        factor = penalty.feasible(left, pull, needed)
        if factor is not None:
            error = max(0.0, problem.energy - 2 * both + quadratic)
            gap = max(0.0, value - factor * inner + 0.5 * (1 - factor) ** 2 * error)
        return cls(objective, fit, gap)


@dataclass(frozen=True, eq=False)
class Solution:
    """Where a solver stopped: beta (inputs, outputs), its objective, and how sure that is.

    `gap` bounds how much lower the objective can get; None where the penalty is not convex. `pull`
    is what the solver's dual variables take off the residual, if it has any.
    """

    beta: Tensor
    objective: float
    gap: float | None
    iterations: int
    converged: bool
    pull: Tensor | None = None


@dataclass(kw_only=True)
class RegressionSolver(Checked, ABC):
    """Minimises a regression and a penalty of its coefficients.

    It stops when the duality gap is below `tolerance` of the objective and `of_fit` of what the fit
    gained over zero; without a gap, when no entry changes by `tolerance` of the largest one; after
    `iterations` at the latest, which is said once.
    """

    tolerance: Annotated[Positive, "duality gap at which it stops, of the objective"] = 1e-6
    of_fit: Annotated[Positive, "and of what the fit gained over zero"] = 1e-3
    iterations: Annotated[Count, "iterations at most"] = 20000
    warned: bool = field(default=False, init=False, repr=False, compare=False)
    needs: ClassVar[frozenset[str]] = frozenset()
    selects: ClassVar[bool] = False  # whether it finds by itself what moves

    def check(self, penalty: Penalty) -> None:
        """Raise ConfigError when the penalty lacks what the solver needs."""
        check_fit(self, penalty)

    @abstractmethod
    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """The minimiser, from `start` or zero."""

    def followed(
        self, steps: Iterable[Iterate], problem: Regression, penalty: Penalty, start: Tensor
    ) -> Solution:
        """Take the steps of a method until the answer is good enough.

        Each is an iterate and what its dual variables take off the residual. The gap costs as much
        as some steps, so it is looked at ever more rarely.
        """
        state, before, due = (start, None), None, 0
        for count, following in enumerate(steps):
            if count == due or count == self.iterations:
                last = count == self.iterations
                enough = None if last else partial(self.limit, problem)
                seen = Certificate.of(problem, penalty, *state, enough=enough)
                converged = self.close(seen, problem, state[0], before)
                if converged or last:
                    break
                due, before = count + max(EVERY, count // 8), state[0]
            state = following
        beta, pull = state
        return Solution(beta, seen.objective, seen.gap, count, converged, pull)

    def limit(self, problem: Regression, objective: float, fit: float) -> float:
        """The gap that is small enough, beside the objective and beside what the fit has gained.

        Near the strength that leaves nothing the fit gains so little that the first says nothing.
        """
        small = min(self.tolerance * objective, self.of_fit * max(0.0, fit))
        return small + ROUNDING * problem.energy

    def close(
        self, seen: Certificate, problem: Regression, beta: Tensor, before: Tensor | None = None
    ) -> bool:
        """Whether to stop: by the gap, or where there is none by the change since the last look."""
        if seen.gap is not None:
            return seen.gap <= self.limit(problem, seen.objective, seen.fit)
        largest = float(beta.abs().amax())
        return (
            before is not None and float((beta - before).abs().amax()) <= self.tolerance * largest
        )

    def scaled(self, factor: float) -> RegressionSolver:
        """The same solver with other tolerances, for parts of a problem; it says nothing."""
        changed = replace(self, tolerance=self.tolerance * factor, of_fit=self.of_fit * factor)
        changed.warned = True
        return changed

    def told(self, found: Solution) -> Solution:
        """The solution; the first that did not converge is said."""
        if not found.converged and not self.warned:
            self.warned = True
            gap = "" if found.gap is None else f" with a gap of {found.gap:.2g}"
            log.warning(
                f"{type(self).__name__} stopped after {found.iterations} iterations{gap} at an "
                f"objective of {found.objective:.4g}; raise solver.iterations or solver.tolerance"
            )
        return found
