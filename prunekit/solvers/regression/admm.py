"""Exact splitting for graph-structured penalties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from prunekit.checks import number
from prunekit.penalties.fusion import Edges, GraphLasso
from prunekit.solvers.regression.problem import Iterate, Regression, RegressionSolver, Solution

RELAXATION = 1.6
BALANCE = 10  # primal over dual residual, or the reverse, at which the step is changed
UNTIL = 500  # steps during which it may be


@dataclass(kw_only=True)
class GraphADMM(RegressionSolver):
    """Alternating directions on copies of beta and of the differences along edges.

    The copy of beta is the answer: its zeros are exact. The least-squares step is a Sylvester
    equation, solved in the eigenbases of G and of the graph. `rho` is the first weight of the
    copies; it is doubled or halved while primal and dual residuals differ much.
    """

    rho: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"splitting"})

    def __post_init__(self) -> None:
        super().__post_init__()
        number("rho", self.rho, above=0)

    def solve(
        self, problem: Regression, penalty: GraphLasso, start: Tensor | None = None
    ) -> Solution:
        """The minimiser, from `start` or zero."""
        self.check(penalty)
        start = torch.zeros_like(problem.cross) if start is None else start
        steps = splitting(problem, penalty, start, self.rho)
        return self.followed(steps, problem, penalty, start)


def splitting(
    problem: Regression, penalty: GraphLasso, start: Tensor, rho: float
) -> Iterator[Iterate]:
    """Iterates, and what the dual variables of the differences take off the residual.

    Matrices are kept as (outputs, inputs), the layout in which edges are fast. The dual variables
    are scaled by rho as usual; they start where `start` would be optimal.
    """
    edges = penalty.edges if penalty.gamma > 0 else penalty.edges.none()
    cross, solve = problem.cross.T.contiguous(), Sylvester.of(problem, edges)
    copy = start.T.contiguous()
    across = edges.differences(copy.T)
    force = penalty.gamma * across.sign()
    left = problem.residual(start).T - edges.gathered(force).T
    pull, force = left / rho, force / rho
    for count in range(1, 10**9):
        wanted = cross + rho * (copy - pull)
        wanted += rho * edges.gathered(across - force).T
        beta = solve(wanted, rho)
        relaxed = RELAXATION * beta + (1 - RELAXATION) * copy
        apart = RELAXATION * edges.differences(beta.T) + (1 - RELAXATION) * across
        before = copy
        copy = penalty.prox_entries(relaxed + pull, 1 / rho)
        across = softshrink(apart + force, penalty.gamma / rho)
        pull += relaxed - copy
        force += apart - across
        yield copy.T, edges.gathered(rho * force)
        if count % 10 == 0 and count <= UNTIL:
            scale = _balance(float((beta - copy).norm()), rho * float((copy - before).norm()))
            rho, pull, force = rho * scale, pull / scale, force / scale


def _balance(primal: float, dual: float) -> float:
    """What to multiply rho with: 2 where the copies differ much, 1/2 where they move much."""
    if primal > BALANCE * dual:
        return 2.0
    return 0.5 if dual > BALANCE * primal else 1.0


@dataclass(frozen=True, eq=False)
class Sylvester:
    """Solves beta^T G + rho (I + C^T C) beta^T = right side, all (outputs, inputs)."""

    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor] | None  # None: the graph has no edges

    @classmethod
    def of(cls, problem: Regression, edges: Edges) -> Sylvester:
        """Both eigenbases; that of the graph is computed once a graph."""
        return cls(problem.spectrum, edges.spectrum if len(edges.first) else None)

    def __call__(self, right: Tensor, rho: float) -> Tensor:
        """The solution for one right side."""
        values, vectors = self.inputs
        if self.outputs is None:
            return (right @ vectors / (values + rho)) @ vectors.T
        nodes, modes = self.outputs
        turned = modes.T @ right @ vectors
        turned /= values + rho * (1 + nodes.clamp_min(0))[:, None]
        return modes @ turned @ vectors.T
