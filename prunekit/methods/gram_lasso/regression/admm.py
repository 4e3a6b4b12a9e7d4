"""Exact splitting for graph-structured penalties."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.regression.active_set import Alive
from prunekit.methods.gram_lasso.regression.path import active_rows
from prunekit.methods.gram_lasso.regression.problem import (
    FINE,
    GROWN,
    ROUGH,
    Certificate,
    Iterate,
    Regression,
    RegressionSolver,
    Solution,
)
from prunekit.schema import Positive, Share

LeastSquares = Callable[[Tensor, float, Tensor], Tensor]
RELAXATION = 1.6
BALANCE = 10  # primal over dual residual, or the reverse, at which the step is changed
UNTIL = 500  # steps during which it may be
DROP, ROUNDS = 2, 8  # entries at work for each alive one from which on others leave; how often
FEW = 2  # entries that may join a column at once


@dataclass(kw_only=True)
class GraphADMM(RegressionSolver):
    """Alternating directions on copies of beta and of the differences along edges.

    The copy of beta is the answer: its zeros are exact. `rho` is the first weight of the copies; it
    is doubled or halved while primal and dual residuals differ much, and is at least 1 and stays
    where entries are not convex. Work is on the entries that are known to move, which others join
    until none is left that would; its least-squares step is block-diagonal, linearised in the
    edges. Where the blocks hold more than a share `dense` of what a step on all entries takes, work
    is on all: a Sylvester equation, solved in the eigenbases of G and of the graph.
    """

    rho: Annotated[Positive, "first weight of the copies"] = 0.3
    dense: Annotated[Share, "share of entries from which on work is on all of them"] = 0.05
    selects: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"splitting"})

    def solve(
        self, problem: Regression, penalty: GraphLasso, start: Tensor | None = None
    ) -> Solution:
        """The minimiser, from `start` or zero."""
        self.check(penalty)
        beta = torch.zeros_like(problem.cross) if start is None else start
        if penalty.gamma == 0:  # nothing to linearise
            return self._dense(problem, penalty, beta, 0)
        chosen, pull, steps, found, last = (beta != 0).T, torch.zeros_like(beta), 0, None, True
        for round_ in itertools.count():
            left = problem.residual_of_few(beta)
            entering = _entering(penalty, left - pull, chosen)
            if found is not None or not bool((chosen | entering).any()):
                seen = Certificate.of(problem, penalty, beta, pull, left)
                close = self.close(seen, problem, beta)
                if close or (last and not bool(entering.any())):
                    good = close or found is None or found.converged
                    return self.told(Solution(beta, seen.objective, seen.gap, steps, good, pull))
            last = int(entering.sum()) <= GROWN * int(chosen.sum())
            chosen = entering | _kept(chosen, (beta != 0).T, round_ < ROUNDS and not last)
            rows = chosen.any(dim=0).nonzero().flatten()
            if self._many(chosen, len(rows)):
                return self._dense(problem, penalty, beta, steps)
            part = Alive(problem.rows(rows), penalty, chosen[:, rows])
            solver = self.scaled(FINE if last else ROUGH)
            found = solver._follow(part, part, part.least_squares, part.start(beta[rows]))
            beta = torch.zeros_like(beta).index_copy_(0, rows, part.whole(found.beta))
            pull = torch.zeros_like(beta).index_copy_(0, rows, part.whole_pull(found))
            steps += found.iterations

    def _many(self, chosen: Tensor, rows: int) -> bool:
        """Whether the blocks hold more than their share of what a step on all entries takes."""
        blocks = int(chosen.sum(dim=1).square().sum())
        return blocks > self.dense * rows * len(chosen) * (rows + len(chosen))

    def _dense(
        self, problem: Regression, penalty: GraphLasso, start: Tensor, steps: int
    ) -> Solution:
        """The solution on all entries, after so many steps on some."""
        if self.dense > 0:
            quiet = self.scaled(1.0)
            quiet.dense = 0.0
            found = active_rows(problem, penalty, quiet, start)
        else:
            edges = penalty.edges if penalty.gamma > 0 else penalty.edges.none()
            found = self._follow(problem, penalty, Sylvester.of(problem, edges), start)
        return self.told(replace(found, iterations=found.iterations + steps))

    def _follow(
        self,
        problem: Regression | Alive,
        penalty: GraphLasso | Alive,
        solve: LeastSquares,
        start: Tensor,
    ) -> Solution:
        """Alternate from `start`."""
        rho = self.rho if penalty.convex else max(1.0, self.rho)
        steps = splitting(problem, penalty, solve, start, rho)
        return self.followed(steps, problem, penalty, start)


def _entering(penalty: GraphLasso, residual: Tensor, chosen: Tensor) -> Tensor:
    """Entries, (outputs, inputs), that this residual would move: in each column the largest.

    At most as many as the column has already, or `FEW`.
    """
    moved = torch.where(chosen.T, 0.0, penalty.prox_entries(residual, 1.0).abs())
    rows = (moved > 0).any(dim=1).nonzero().flatten()
    candidates = moved[rows].T.contiguous()  # (outputs, rows)
    order = candidates.argsort(dim=1, descending=True)
    ranks = torch.arange(order.shape[1]).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    room = chosen.sum(dim=1, keepdim=True).clamp_min(FEW)
    return torch.zeros_like(chosen).index_copy_(1, rows, (candidates > 0) & (rank < room))


def _kept(chosen: Tensor, alive: Tensor, may_drop: bool) -> Tensor:
    """The entries that stay at work: only alive ones, if those are few and others may go."""
    return alive if may_drop and int(chosen.sum()) > DROP * int(alive.sum()) else chosen


def splitting(
    problem: Regression | Alive,
    penalty: GraphLasso | Alive,
    solve: LeastSquares,
    start: Tensor,
    rho: float,
) -> Iterator[Iterate]:
    """Iterates, and what the dual variables of the differences take off the residual.

    Matrices are kept as (outputs, inputs), the layout in which edges are fast. The dual variables
    are scaled by rho as usual; they start where `start` would be optimal. `solve` is the
    least-squares step of a right side, rho and the last answer.
    """
    edges = penalty.edges if penalty.gamma > 0 else penalty.edges.none()
    cross, copy = problem.cross.T.contiguous(), start.T.contiguous()
    beta, across = copy, edges.differences(copy.T)
    force = penalty.gamma * across.sign()
    left = problem.residual(start).T - edges.gathered(force).T
    pull, force = left / rho, force / rho
    for count in range(1, 10**9):
        wanted = cross + rho * (copy - pull)
        wanted += rho * edges.gathered(across - force).T
        beta = solve(wanted, rho, beta)
        relaxed = RELAXATION * beta + (1 - RELAXATION) * copy
        apart = RELAXATION * edges.differences(beta.T) + (1 - RELAXATION) * across
        before = copy
        copy = penalty.prox_entries((relaxed + pull).T, 1 / rho).T
        across = softshrink(apart + force, penalty.gamma / rho)
        pull += relaxed - copy
        force += apart - across
        yield copy.T, edges.gathered(rho * force)
        if penalty.convex and count % 10 == 0 and count <= UNTIL:
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

    def __call__(self, right: Tensor, rho: float, near: Tensor) -> Tensor:
        """The solution for one right side, wherever one starts."""
        values, vectors = self.inputs
        if self.outputs is None:
            return (right @ vectors / (values + rho)) @ vectors.T
        nodes, modes = self.outputs
        turned = modes.T @ right @ vectors
        turned /= values + rho * (1 + nodes.clamp_min(0))[:, None]
        return modes @ turned @ vectors.T
