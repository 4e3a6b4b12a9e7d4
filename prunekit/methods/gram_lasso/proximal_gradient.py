"""Proximal gradient solvers of regressions: FISTA, and smoothing for penalties without a prox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.regression import (
    EVERY,
    Certificate,
    Regression,
    RegressionSolver,
    Solution,
    StructuredPenalty,
)
from prunekit.penalties.base import Penalty
from prunekit.schema import PartShare, Positive

STALLED = 1e-9  # relative change of the objective between two checks at which mu is lowered


@dataclass(kw_only=True)
class FISTA(RegressionSolver):
    """Accelerated proximal gradient (Beck and Teboulle 2009) with restarts, for an exact prox.

    Zeros are exact. The step size is 1 / lambda_max(G).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prox"})

    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """Return the minimiser, starting from `start` or zero."""
        self.check(penalty)
        start = torch.zeros_like(problem.cross) if start is None else start
        betas = descend(lambda b: -problem.residual(b), penalty.prox, problem.step, start)
        solution = self.iterate(((beta, None) for beta in betas), problem, penalty, start)
        return self.finish(problem, penalty, solution)


def descend(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    step: float,
    start: Tensor,
) -> Iterator[Tensor]:
    """Yield the iterates of the accelerated proximal gradient method, without end.

    Momentum restarts if a step goes against it (O'Donoghue and Candes 2015).
    """
    beta, ahead, theta = start, start, 1.0
    while True:
        following = prox(ahead - step * gradient(ahead), step)
        if float(((ahead - following) * (following - beta)).sum()) > 0:
            theta = 1.0
            following = prox(beta - step * gradient(beta), step)
        next_theta = (math.sqrt(theta**4 + 4 * theta**2) - theta**2) / 2
        ahead = following + (1 - theta) / theta * next_theta * (following - beta)
        beta, theta = following, next_theta
        yield beta


@dataclass(kw_only=True)
class SmoothingProximalGradient(RegressionSolver):
    """FISTA on the smoothed coupling part, with the prox of single entries (Chen et al. 2012).

    mu falls from `mu` to `least_mu` by factors of ten; each solution starts the next one. The
    objective may be off by `least_mu` * `penalty.smoothing_error(inputs)`, so the gap may stay
    above the tolerance; the solver also stops when the last mu gains nothing more. Entries that
    should be zero stay small, so those below `zero` of the largest are set to zero in the end.
    """

    mu: Annotated[Positive, "smoothing in the beginning"] = 0.1
    least_mu: Annotated[Positive, "smoothing in the end"] = 1e-5
    zero: Annotated[PartShare, "entries below this share of the largest are set to zero"] = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"smoothing"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu < self.least_mu:
            raise ConfigError(f"mu={self.mu:g} is below least_mu={self.least_mu:g}")

    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """Return the minimiser up to the smoothing, starting from `start` or zero."""
        self.check(penalty)
        assert isinstance(penalty, StructuredPenalty)  # no other penalty offers smoothing
        beta = torch.zeros_like(problem.cross) if start is None else start
        mu, iterations = self.mu, 0
        while True:
            last = mu <= self.least_mu * (1 + 1e-9)
            beta, steps, stalled, close = self._solve_smoothed(problem, penalty, beta, mu)
            iterations += steps
            if last or close:
                break
            mu = max(mu / 10, self.least_mu)
        largest = float(beta.abs().amax())
        beta = torch.where(beta.abs() > self.zero * largest, beta, 0.0)
        coupling = penalty.smoothed_gradient(beta, mu)
        certificate = Certificate.of(problem, penalty, beta, coupling)
        objective, gap = certificate.objective, certificate.gap
        solution = Solution(beta, objective, gap, iterations, stalled or close)
        return self.finish(problem, penalty, solution)

    def _solve_smoothed(
        self, problem: Regression, penalty: StructuredPenalty, start: Tensor, mu: float
    ) -> tuple[Tensor, int, bool, bool]:
        """Solve for one mu; return beta, steps, whether it stalled, whether the gap is small."""
        step = 1 / (problem.lipschitz + penalty.curvature(mu) or 1.0)
        betas = descend(
            lambda b: penalty.smoothed_gradient(b, mu) - problem.residual(b),
            penalty.prox_entries,
            step,
            start,
        )
        beta, previous, count = start, float("inf"), 0
        while count < self.iterations:
            coupling = penalty.smoothed_gradient(beta, mu)
            certificate = Certificate.of(problem, penalty, beta, coupling)
            close = certificate.gap is not None and self.has_converged(certificate, problem, beta)
            objective = certificate.objective
            stalled = abs(previous - objective) <= STALLED * abs(objective)
            if close or stalled:
                return beta, count, stalled, close
            every = max(EVERY, count // 4)
            beta, previous = next(islice(betas, every - 1, None)), objective
            count += every
        return beta, count, False, False
