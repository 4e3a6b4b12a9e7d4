"""ADMM for the graph-structured lasso, on an active set of entries or on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from prunekit.methods.gram_lasso.active_entries import ActiveSetProblem, FusedPenalty
from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.regression import (
    FINE,
    GROWING,
    ROUGH,
    Certificate,
    Iterate,
    Quadratic,
    Regression,
    RegressionSolver,
    Solution,
    solve_active_rows,
)
from prunekit.penalties.base import Penalty
from prunekit.schema import Positive, Share

LeastSquares = Callable[[Tensor, float, Tensor], Tensor]
"""Solves the least-squares step, given its right side, rho and the previous solution."""
RELAXATION = 1.6
BALANCE = 10  # ratio of primal and dual residuals at which rho is changed
BALANCING_STEPS = 500  # steps during which rho may change
PRUNE_RATIO, PRUNE_ROUNDS = 2, 8  # active entries per non-zero one that are too many; rounds
MIN_NEW_ENTRIES = 2  # entries that may join a column at once


@dataclass(kw_only=True)
class GraphADMM(RegressionSolver):
    """ADMM on copies of beta and of the differences along edges.

    The copy of beta is the solution, so zeros are exact. `rho` is doubled or halved while primal
    and dual residuals differ much; if the penalty of entries is not convex, it is fixed and at
    least 1. Steps work on an active set of entries, which grows until no other entry would move.
    Their least-squares problem is block-diagonal, with the edges linearised. If the blocks hold
    more than a share `dense` of what a step on all entries takes, all entries are active: then the
    step solves a Sylvester equation in the eigenbases of G and of the graph.
    """

    rho: Annotated[Positive, "weight of the copies in the beginning"] = 0.3
    dense: Annotated[Share, "relative size of the active set from which all entries are active"] = (
        0.05
    )
    finds_active_entries: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"splitting"})

    def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None) -> Solution:
        """Return the minimiser, starting from `start` or zero."""
        self.check(penalty)
        assert isinstance(penalty, GraphLasso)  # no other penalty offers splitting
        beta = torch.zeros_like(problem.cross) if start is None else start
        if penalty.gamma == 0:  # there is nothing to linearise
            solution = self._solve_dense(problem, penalty, beta, 0)
        else:
            solution = self._solve_active(problem, penalty, beta)
        return self.finish(problem, penalty, solution)

    def _solve_active(self, problem: Regression, penalty: GraphLasso, beta: Tensor) -> Solution:
        """Return the solution, computed on an active set of entries, (outputs, inputs)."""
        active, coupling = (beta != 0).T, torch.zeros_like(beta)
        iterations, last = 0, True
        part: Solution | None = None
        for round_ in itertools.count():
            residual = problem.sparse_residual(beta)
            joining = _joining_entries(penalty, residual - coupling, active)
            if part is not None or not bool((active | joining).any()):
                certificate = Certificate.of(problem, penalty, beta, coupling, residual)
                close = self.has_converged(certificate, problem, beta)
                if close or (last and not bool(joining.any())):
                    converged = close or part is None or part.converged
                    objective, gap = certificate.objective, certificate.gap
                    return Solution(beta, objective, gap, iterations, converged, coupling)
            last = int(joining.sum()) <= GROWING * int(active.sum())
            may_prune = round_ < PRUNE_ROUNDS and not last
            active = joining | _pruned(active, (beta != 0).T, may_prune)
            rows = active.any(dim=0).nonzero().flatten()
            if self._is_dense(active, len(rows)):
                break
            restricted = ActiveSetProblem(problem.restrict(rows), penalty, active[:, rows])
            solver = self.with_tolerances(FINE if last else ROUGH)
            start = restricted.gather(beta[rows])
            part = solver._alternate(restricted, restricted, restricted.least_squares, start)
            beta = torch.zeros_like(beta).index_copy_(0, rows, restricted.scatter(part.beta))
            coupling = torch.zeros_like(beta).index_copy_(0, rows, restricted.whole_coupling(part))
            iterations += part.iterations
        return self._solve_dense(problem, penalty, beta, iterations)

    def _is_dense(self, active: Tensor, rows: int) -> bool:
        """Return whether the blocks hold more than their share of a step on all entries."""
        blocks = int(active.sum(dim=1).square().sum())
        return blocks > self.dense * rows * len(active) * (rows + len(active))

    def _solve_dense(
        self, problem: Regression, penalty: GraphLasso, start: Tensor, iterations: int
    ) -> Solution:
        """Return the solution on all entries, after so many iterations on some."""
        if self.dense > 0:
            solver = self.with_tolerances(1.0)
            solver.dense = 0.0
            solution = solve_active_rows(problem, penalty, solver, start)
        else:
            edges = penalty.edges if penalty.gamma > 0 else penalty.edges.without_edges()
            step = Sylvester.of(problem, edges)
            solution = self._alternate(problem, penalty, step, start)
        return replace(solution, iterations=solution.iterations + iterations)

    def _alternate(
        self, problem: Quadratic, penalty: FusedPenalty, solve: LeastSquares, start: Tensor
    ) -> Solution:
        rho = self.rho if penalty.convex else max(1.0, self.rho)
        steps = admm_steps(problem, penalty, solve, start, rho)
        return self.iterate(steps, problem, penalty, start)


def _joining_entries(penalty: GraphLasso, residual: Tensor, active: Tensor) -> Tensor:
    """Return the inactive entries that this residual would move most, (outputs, inputs).

    In each column they are at most as many as are active already, or `MIN_NEW_ENTRIES`.
    """
    moved = torch.where(active.T, 0.0, penalty.prox_entries(residual, 1.0).abs())
    rows = (moved > 0).any(dim=1).nonzero().flatten()
    candidates = moved[rows].T.contiguous()  # (outputs, rows)
    order = candidates.argsort(dim=1, descending=True)
    ranks = torch.arange(order.shape[1]).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, ranks)
    room = active.sum(dim=1, keepdim=True).clamp_min(MIN_NEW_ENTRIES)
    return torch.zeros_like(active).index_copy_(1, rows, (candidates > 0) & (rank < room))


def _pruned(active: Tensor, nonzero: Tensor, may_prune: bool) -> Tensor:
    """Return the non-zero entries if they are few among the active ones, else the active ones."""
    few = int(active.sum()) > PRUNE_RATIO * int(nonzero.sum())
    return nonzero if may_prune and few else active


def admm_steps(
    problem: Quadratic, penalty: FusedPenalty, solve: LeastSquares, start: Tensor, rho: float
) -> Iterator[Iterate]:
    """Yield iterates, without end.

    Matrices are (outputs, inputs), the layout in which edges are fast. The dual variables are
    scaled by rho as usual, and start where `start` would be optimal.
    """
    edges = penalty.edges if penalty.gamma > 0 else penalty.edges.without_edges()
    cross, copy = problem.cross.T.contiguous(), start.T.contiguous()
    beta, differences = copy, edges.differences(copy.T)
    edge_dual = penalty.gamma * differences.sign()
    left = problem.residual(start).T - edges.adjoint(edge_dual).T
    dual, edge_dual = left / rho, edge_dual / rho
    for count in range(1, 10**9):
        right = cross + rho * (copy - dual)
        right += rho * edges.adjoint(differences - edge_dual).T
        beta = solve(right, rho, beta)
        relaxed = RELAXATION * beta + (1 - RELAXATION) * copy
        apart = RELAXATION * edges.differences(beta.T) + (1 - RELAXATION) * differences
        previous = copy
        copy = penalty.prox_entries((relaxed + dual).T, 1 / rho).T
        differences = softshrink(apart + edge_dual, penalty.gamma / rho)
        dual += relaxed - copy
        edge_dual += apart - differences
        yield copy.T, edges.adjoint(rho * edge_dual)
        if penalty.convex and count % 10 == 0 and count <= BALANCING_STEPS:
            scale = _balance(float((beta - copy).norm()), rho * float((copy - previous).norm()))
            rho, dual, edge_dual = rho * scale, dual / scale, edge_dual / scale


def _balance(primal: float, dual: float) -> float:
    """Return the factor for rho: 2 for large primal residuals, 1/2 for large dual ones, else 1."""
    if primal > BALANCE * dual:
        return 2.0
    return 0.5 if dual > BALANCE * primal else 1.0


@dataclass(frozen=True, eq=False)
class Sylvester:
    """Solves beta^T G + rho (I + C^T C) beta^T = right, in which all are (outputs, inputs).

    `inputs` and `outputs` are eigenvalues and eigenvectors of G and C^T C; `outputs` is None if the
    graph has no edges.
    """

    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, problem: Regression, edges: Edges) -> Sylvester:
        """Use both spectra, which the problem and the graph cache."""
        return cls(problem.spectrum, edges.spectrum if len(edges.first) else None)

    def __call__(self, right: Tensor, rho: float, near: Tensor) -> Tensor:
        """Return the exact solution; `near` is not used."""
        values, vectors = self.inputs
        if self.outputs is None:
            return (right @ vectors / (values + rho)) @ vectors.T
        nodes, modes = self.outputs
        rotated = modes.T @ right @ vectors
        rotated /= values + rho * (1 + nodes.clamp_min(0))[:, None]
        return modes @ rotated @ vectors.T
