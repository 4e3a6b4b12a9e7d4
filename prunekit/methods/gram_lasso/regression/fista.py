"""Accelerated proximal gradient for penalties with an exact prox."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunekit.methods.gram_lasso.regression.problem import Regression, RegressionSolver, Solution
from prunekit.penalties.base import Penalty


@dataclass(kw_only=True)
class FISTA(RegressionSolver):
    """Proximal gradient with momentum (Beck and Teboulle 2009) that restarts where it overshoots.

    Zeros are exact. The step is 1 / lambda_max(G).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prox"})

    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """The minimiser, from `start` or zero."""
        self.check(penalty)
        start = torch.zeros_like(problem.cross) if start is None else start
        steps = descent(lambda b: -problem.residual(b), penalty.prox, problem.step, start)
        found = self.followed(((beta, None) for beta in steps), problem, penalty, start)
        return self.told(found)


def descent(
    gradient: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, float], Tensor],
    step: float,
    start: Tensor,
) -> Iterator[Tensor]:
    """Iterates of the accelerated proximal gradient method, without end.

    Momentum is dropped where the step goes against it (O'Donoghue and Candes 2015).
    """
    beta, ahead, theta = start, start, 1.0
    while True:
        new = prox(ahead - step * gradient(ahead), step)
        if float(((ahead - new) * (new - beta)).sum()) > 0:
            theta = 1.0
            new = prox(beta - step * gradient(beta), step)
        following = (math.sqrt(theta**4 + 4 * theta**2) - theta**2) / 2
        ahead = new + (1 - theta) / theta * following * (new - beta)
        beta, theta = new, following
        yield beta
