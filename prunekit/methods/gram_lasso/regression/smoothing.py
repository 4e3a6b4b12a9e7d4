"""Smoothing proximal gradient, the solver that Liu et al. name."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.graph_lasso import GraphLasso
from prunekit.methods.gram_lasso.regression.fista import descent
from prunekit.methods.gram_lasso.regression.problem import (
    EVERY,
    Certificate,
    Regression,
    RegressionSolver,
    Solution,
)
from prunekit.methods.gram_lasso.tree_lasso import TreeLasso
from prunekit.schema import PartShare, Positive

STALL = 1e-9  # relative change of the objective between two looks at which mu has done its part


@dataclass(kw_only=True)
class SmoothingProximalGradient(RegressionSolver):
    """FISTA on the structured part smoothed by mu, single entries by their prox (Chen et al. 2012).

    mu falls from `mu` to `least_mu` by tens, each solution starting the next. The smoothed
    objective is off by up to least_mu * `penalty.spread(inputs)`, so that the tolerance of the gap
    may be out of reach: it also stops where the last mu gains nothing more. Entries that should be
    zero stay small: those below `zero` of the largest are set to zero in the end.
    """

    mu: Annotated[Positive, "smoothing in the beginning"] = 0.1
    least_mu: Annotated[Positive, "smoothing in the end"] = 1e-5
    zero: Annotated[PartShare, "entries below this share of the largest are zero"] = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"smoothing"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu < self.least_mu:
            raise ConfigError(f"mu={self.mu:g} is below least_mu={self.least_mu:g}")

    def solve(
        self, problem: Regression, penalty: GraphLasso | TreeLasso, start: Tensor | None = None
    ) -> Solution:
        """The minimiser up to the smoothing, from `start` or zero."""
        self.check(penalty)
        beta = torch.zeros_like(problem.cross) if start is None else start
        mu, count, converged = self.mu, 0, False
        while True:
            last = mu <= self.least_mu * (1 + 1e-9)
            beta, steps, converged, close = self.smoothed(problem, penalty, beta, mu)
            count += steps
            if last or close:
                break
            mu = max(mu / 10, self.least_mu)
        largest = float(beta.abs().amax())
        beta = torch.where(beta.abs() > self.zero * largest, beta, 0.0)
        seen = Certificate.of(problem, penalty, beta, penalty.smooth_pull(beta, mu))
        found = Solution(beta, seen.objective, seen.gap, count, converged or close)
        return self.told(found)

    def smoothed(
        self, problem: Regression, penalty: GraphLasso | TreeLasso, start: Tensor, mu: float
    ) -> tuple[Tensor, int, bool, bool]:
        """At one mu: where it ends, steps, whether it stalled, whether the gap is small."""
        step = 1 / (problem.steepest + penalty.curvature(mu) or 1.0)
        steps = descent(
            lambda b: penalty.smooth_pull(b, mu) - problem.residual(b),
            penalty.prox_entries,
            step,
            start,
        )
        beta, before, count, every = start, float("inf"), 0, EVERY
        while count < self.iterations:
            seen = Certificate.of(problem, penalty, beta, penalty.smooth_pull(beta, mu))
            close = seen.gap is not None and self.close(seen, problem, beta)
            stalled = abs(before - seen.objective) <= STALL * abs(seen.objective)
            if close or stalled:
                return beta, count, stalled, close
            before, every = seen.objective, max(EVERY, count // 4)
            beta = next(islice(steps, every - 1, None))
            count += every
        return beta, count, False, False
