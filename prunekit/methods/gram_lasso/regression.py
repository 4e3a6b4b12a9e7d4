"""Regressions on tables of inner products: the problem, structured penalties, gaps and solvers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, partial
from typing import Annotated, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.exact_zeros import with_exact_zeros
from prunekit.penalties.base import Penalty, RadialPenalty
from prunekit.penalties.magnitude import L1, L1MinusL2
from prunekit.schema import Checked, Count, Positive
from prunekit.solvers.base import check_fit
from prunekit.validate import number

log = logging.getLogger(__name__)

EVERY = 10  # steps between the first computations of the gap
ROUGH, FINE = 30.0, 0.5  # factors on tolerances of parts: while parts still grow, and afterwards
GROWING = 0.05  # a part that grows by a larger share still grows
ROUNDING = 1e-13  # of the energy: smaller gaps are rounding errors
MIN_NEW_ROWS = 8  # rows that are added at once, if so many would move
Iterate = tuple[Tensor, Tensor | None]
"""beta, and the `coupling` of `Solution`."""
S = TypeVar("S", bound="RegressionSolver")


class Quadratic(Protocol):
    """The quadratic part of a regression, as gaps need it."""

    @property
    def cross(self) -> Tensor:
        """A, see `Regression`."""

    @property
    def energy(self) -> float:
        """The sum of the squared norms of the responses."""

    def residual(self, beta: Tensor) -> Tensor:
        """Return A - G beta."""


class DualPenalty(Protocol):
    """The penalty of a regression, as gaps need it."""

    def value(self, rows: Tensor) -> Tensor:
        """Return the penalty, see `Penalty.value`."""

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the factor that makes a residual dual feasible, see `Penalty.dual_scale`."""


@dataclass(frozen=True, eq=False)
class Regression:
    """min over beta of 1/2 tr(beta^T G beta) - tr(A^T beta) + energy / 2 + penalty(beta).

    `gram` is G (inputs, inputs) and `cross` is A (inputs, outputs), both double. `energy` is the
    sum of the squared norms of the responses, so that the objective without the penalty is half the
    squared error (Liu et al. 2025, eq. 4).
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
        """The eigenvalues of G, clamped to at least 0, and its eigenvectors."""
        values, vectors = torch.linalg.eigh(self.gram)
        return values.clamp_min(0), vectors

    @cached_property
    def lipschitz(self) -> float:
        """The Lipschitz constant of the gradient: the largest eigenvalue of G, rounded up."""
        return float(torch.linalg.eigvalsh(self.gram)[-1]) * (1 + 1e-9)

    @property
    def step(self) -> float:
        """The step size 1 / `lipschitz`; 1 if G is zero."""
        return 1 / self.lipschitz if self.lipschitz > 0 else 1.0

    def residual(self, beta: Tensor) -> Tensor:
        """Return A - G beta, the negative gradient of the quadratic part."""
        return torch.addmm(self.cross, self.gram, beta, alpha=-1)

    def sparse_residual(self, beta: Tensor) -> Tensor:
        """Return A - G beta, fast if most rows of beta are zero."""
        rows = (beta != 0).any(dim=1)
        return torch.addmm(self.cross, self.gram[:, rows], beta[rows], alpha=-1)

    def restrict(self, rows: Tensor) -> Regression:
        """Return the problem in which all rows of beta but these indices are zero."""
        return Regression(self.gram[rows][:, rows], self.cross[rows], self.energy)


@dataclass(frozen=True, eq=False)
class StructuredPenalty(Penalty):
    """A penalty of single entries of beta plus a penalty that couples entries of its rows.

    `entries` makes the former from lam; by default it is the l1 norm. Raises ConfigError if it is
    no penalty of single entries.
    """

    _: KW_ONLY
    entries: Callable[[float], RadialPenalty] = L1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.single, RadialPenalty) or isinstance(self.single, L1MinusL2):
            raise ConfigError(
                f"entries={self.single!r} is no penalty of single entries; take L1 or MCP"
            )

    @cached_property
    def single(self) -> RadialPenalty:
        """The penalty of single entries, without weights."""
        return self.entries(self.lam)

    @property
    def convex(self) -> bool:
        """True if single entries have the l1 norm, so that there is a duality gap."""
        return type(self.single) is L1

    @abstractmethod
    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of the penalty of single entries."""

    @abstractmethod
    def smoothed_gradient(self, rows: Tensor, mu: float) -> Tensor:
        """Return the gradient of the coupling part smoothed by `mu` (Chen et al. 2012).

        The smoothed part is smaller than the part itself by at most mu * `smoothing_error`.
        """

    @abstractmethod
    def curvature(self, mu: float) -> float:
        """Return a Lipschitz constant of `smoothed_gradient`."""

    @abstractmethod
    def smoothing_error(self, rows: int) -> float:
        """Return the largest smoothing error of a matrix with so many rows, divided by mu."""


@dataclass(frozen=True)
class Certificate:
    """The objective at a point, how much it gained over zero, and the duality gap, if there is one.

    The gain is the objective at zero minus the objective.
    """

    objective: float
    gain: float
    gap: float | None

    @classmethod
    def of(
        cls,
        problem: Quadratic,
        penalty: DualPenalty,
        beta: Tensor,
        coupling: Tensor | None = None,
        residual: Tensor | None = None,
        limit: Callable[[float, float], float] | None = None,
    ) -> Certificate:
        """Compute the certificate at `beta`; `residual` is computed unless it is given.

        With the residual T, the factor t that makes T dual feasible and the squared error q, the
        gap is value - t <beta, T> + (1 - t)^2 q / 2, which is no difference of large numbers. If
        the gap is above limit(objective, gain), a larger one may be returned, which is cheaper.
        """
        residual = problem.residual(beta) if residual is None else residual
        value = float(penalty.value(beta))
        both, inner = float((problem.cross * beta).sum()), float((residual * beta).sum())
        quadratic = both - inner
        gain = both - quadratic / 2 - value
        objective, gap, needed = problem.energy / 2 - gain, None, 0.0
        if limit is not None and inner > 0:
            needed = (value - limit(objective, gain)) / inner
        factor = penalty.dual_scale(residual, coupling, needed)
        if factor is not None:
            error = max(0.0, problem.energy - 2 * both + quadratic)
            gap = max(0.0, value - factor * inner + 0.5 * (1 - factor) ** 2 * error)
        return cls(objective, gain, gap)


@dataclass(frozen=True, eq=False)
class Solution:
    """The result of a solver: beta (inputs, outputs) and its objective.

    `gap` bounds how much lower the objective could be; it is None if the penalty is not convex.
    `coupling` is the subgradient of the penalty's coupling part that the solver's dual variables
    imply, if it has any; gaps subtract it from the residual.
    """

    beta: Tensor
    objective: float
    gap: float | None
    iterations: int
    converged: bool
    coupling: Tensor | None = None


@dataclass(kw_only=True)
class RegressionSolver(Checked, ABC):
    """Minimises a regression with a penalty on its coefficients.

    It stops when the duality gap is below `tolerance` of the objective and below `of_fit` of the
    gain over zero. Without a gap it stops when no entry changes by more than `tolerance` of the
    largest one. It logs a warning the first time that `iterations` were not enough.
    """

    tolerance: Annotated[Positive, "duality gap at which it stops, relative to the objective"] = (
        1e-6
    )
    of_fit: Annotated[Positive, "and relative to the gain over zero coefficients"] = 1e-3
    iterations: Annotated[Count, "iterations at most"] = 20000
    warned: bool = field(default=False, init=False, repr=False, compare=False)
    needs: ClassVar[frozenset[str]] = frozenset()
    finds_active_entries: ClassVar[bool] = False
    """True if `solve` itself works on the entries that move; others need `solve_active_rows`."""

    def check(self, penalty: Penalty) -> None:
        """Raise ConfigError if the penalty lacks what the solver needs."""
        check_fit(self, penalty)

    @abstractmethod
    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """Return the minimiser, starting from `start` or zero."""

    def iterate(
        self, steps: Iterable[Iterate], problem: Quadratic, penalty: DualPenalty, start: Tensor
    ) -> Solution:
        """Take steps until the solution has converged.

        The gap costs as much as some steps, so it is computed ever more rarely.
        """
        state: Iterate = (start, None)
        previous, due = None, 0
        for count, following in enumerate(steps):
            if count == due or count == self.iterations:
                last = count == self.iterations
                limit = None if last else partial(self.gap_limit, problem)
                certificate = Certificate.of(problem, penalty, *state, limit=limit)
                converged = self.has_converged(certificate, problem, state[0], previous)
                if converged or last:
                    break
                due, previous = count + max(EVERY, count // 8), state[0]
            state = following
        beta, coupling = state
        return Solution(beta, certificate.objective, certificate.gap, count, converged, coupling)

    def gap_limit(self, problem: Quadratic, objective: float, gain: float) -> float:
        """Return the largest gap that counts as converged.

        The gain matters near the lam that leaves nothing, where it is small beside the objective.
        """
        small = min(self.tolerance * objective, self.of_fit * max(0.0, gain))
        return small + ROUNDING * problem.energy

    def has_converged(
        self,
        certificate: Certificate,
        problem: Quadratic,
        beta: Tensor,
        previous: Tensor | None = None,
    ) -> bool:
        """Return whether the gap is small or, without one, the change since `previous`."""
        if certificate.gap is not None:
            limit = self.gap_limit(problem, certificate.objective, certificate.gain)
            return certificate.gap <= limit
        if previous is None:
            return False
        change = float((beta - previous).abs().amax())
        return change <= self.tolerance * float(beta.abs().amax())

    def with_tolerances(self: S, factor: float) -> S:
        """Return a copy with scaled tolerances that logs no warning, for parts of a problem."""
        solver = replace(self, tolerance=self.tolerance * factor, of_fit=self.of_fit * factor)
        solver.warned = True
        return solver

    def finish(self, problem: Quadratic, penalty: DualPenalty, solution: Solution) -> Solution:
        """Return the solution with exact zeros; log a warning, once, if it has not converged."""
        if not solution.converged and not self.warned:
            self.warned = True
            gap = "" if solution.gap is None else f" with a gap of {solution.gap:.2g}"
            log.warning(
                f"{type(self).__name__} stopped after {solution.iterations} iterations{gap} at an "
                f"objective of {solution.objective:.4g}; raise solver.iterations or "
                "solver.tolerance"
            )
        return with_exact_zeros(problem, penalty, solution)


def solve_active_rows(
    problem: Regression, penalty: Penalty, solver: RegressionSolver, start: Tensor
) -> Solution:
    """Return the solution, computed on an active set of rows outside which beta is zero.

    A row stays zero while its residual is not large enough to move it (`Penalty.dual_excess`). The
    others become active, those with the largest excess first and at most a third of the active set
    at once, until none is left or the gap of the whole problem is small. While the set grows, parts
    are solved roughly. When it stops growing, rows that are still zero become inactive, once.
    """
    beta, active = start, (start != 0).any(dim=1)
    coupling: Tensor | None = None
    part: Solution | None = None
    iterations, last, prune = 0, True, False
    while True:
        rows = active.nonzero().flatten()
        residual = problem.sparse_residual(beta)
        joining = _joining_rows(penalty.dual_excess(residual), active)
        if part is not None or not len(joining) + len(rows):
            certificate = Certificate.of(problem, penalty, beta, coupling, residual)
            close = solver.has_converged(certificate, problem, beta)
            if close or (last and not len(joining)):
                converged = close or part is None or part.converged
                objective, gap = certificate.objective, certificate.gap
                solution = Solution(beta, objective, gap, iterations, converged, coupling)
                return solver.finish(problem, penalty, solution)
        last = len(joining) <= GROWING * len(rows)
        if last and prune and bool(beta.any()):
            active, prune = (beta != 0).any(dim=1), False
        prune = prune or (not last and iterations == 0)
        active[joining] = True
        rows = active.nonzero().flatten()
        part_solver = solver.with_tolerances(FINE if last else ROUGH)
        part = part_solver.solve(problem.restrict(rows), penalty, beta[rows])
        beta = torch.zeros_like(beta).index_copy_(0, rows, part.beta)
        if part.coupling is not None:
            coupling = torch.zeros_like(beta).index_copy_(0, rows, part.coupling)
        iterations += part.iterations


def _joining_rows(excess: Tensor, active: Tensor) -> Tensor:
    """Return the inactive rows with the largest excess; all of them if any is infinite."""
    excess = torch.where(active, 0.0, excess)
    count = int((excess > 0).sum())
    if not bool(excess.isinf().any()):
        count = min(count, max(MIN_NEW_ROWS, int(active.sum()) // 3))
    return excess.topk(count).indices
