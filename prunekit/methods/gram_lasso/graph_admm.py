"""ADMM for the graph-structured lasso, on an active set of entries or on all of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softshrink

from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.regression import (
    FINE,
    GROWING,
    ROUGH,
    Certificate,
    DualPenalty,
    Iterate,
    Quadratic,
    Regression,
    RegressionSolver,
    Solution,
    solve_active_rows,
)
from prunekit.penalties.base import Penalty
from prunekit.schema import Positive, Share

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import SuperLU

LeastSquares = Callable[[Tensor, float, Tensor], Tensor]
"""Solves the least-squares step, given its right side, rho and the previous solution."""
RELAXATION = 1.6
BALANCE = 10  # ratio of primal and dual residuals at which rho is changed
BALANCING_STEPS = 500  # steps during which rho may change
PRUNE_RATIO, PRUNE_ROUNDS = 2, 8  # active entries per non-zero one that are too many; rounds
MIN_NEW_ENTRIES = 2  # entries that may join a column at once


class FusedPenalty(DualPenalty, Protocol):
    """A penalty of single entries plus gamma times differences along edges, as ADMM splits it."""

    @property
    def edges(self) -> Edges:
        """The edges."""

    @property
    def gamma(self) -> float:
        """The strength of the differences."""

    @property
    def convex(self) -> bool:
        """True if the penalty is convex."""

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of all but the differences."""


@dataclass(frozen=True, eq=False)
class ActiveSetProblem:
    """The graph lasso restricted to the active entries of beta, as a matrix with a single row.

    It is a `Quadratic` and a `FusedPenalty` in one. `gram` is block-diagonal, with a block for
    every column of beta. `edges` join entries of the same row whose columns are neighbours. An edge
    to an entry that is not active, hence zero, adds an l1 norm of the active one: `edge_l1`.
    `active` is (outputs, inputs), bool.
    """

    problem: Regression
    penalty: GraphLasso
    active: Tensor

    @cached_property
    def positions(self) -> tuple[Tensor, Tensor]:
        """The outputs and the inputs of the entries, sorted by outputs."""
        outputs, inputs = self.active.nonzero().T
        return outputs, inputs

    @cached_property
    def cross(self) -> Tensor:
        """The entries of A, (1, entries)."""
        outputs, inputs = self.positions
        return self.problem.cross[inputs, outputs][None]

    @property
    def energy(self) -> float:
        """The energy of the whole problem."""
        return self.problem.energy

    @cached_property
    def gram(self) -> csr_matrix:
        """G between entries of the same column, (entries, entries)."""
        from scipy.sparse import csr_matrix  # imported late: few runs need it

        outputs, inputs = (part.numpy() for part in self.positions)
        counts = np.bincount(outputs, minlength=len(self.active))
        starts = np.cumsum(counts) - counts
        partners = counts[outputs]  # per entry: the entries of its column
        pointers = np.concatenate([[0], np.cumsum(partners)])
        indices = np.arange(pointers[-1]) - np.repeat(pointers[:-1] - starts[outputs], partners)
        values = self.problem.gram.numpy()[np.repeat(inputs, partners), inputs[indices]]
        return csr_matrix((values, indices, pointers), shape=(len(inputs), len(inputs)))

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The entries at both ends of each edge in each row, (edges, inputs); -1: not active."""
        numbers = torch.full(self.active.shape, -1)
        numbers[self.active] = torch.arange(len(self.positions[0]))
        parent = self.penalty.edges
        return numbers[parent.first], numbers[parent.second]

    @cached_property
    def edges(self) -> Edges:
        """The edges between active entries."""
        first, second = self.ends
        edge, row = ((first >= 0) & (second >= 0)).nonzero().T
        parent, count = self.penalty.edges, self.cross.shape[1]
        ends = first[edge, row], second[edge, row]
        return Edges(*ends, parent.weight[edge], parent.sign[edge], max(1, count))

    @property
    def gamma(self) -> float:
        """The strength of the differences."""
        return self.penalty.gamma

    @property
    def convex(self) -> bool:
        """True if the whole penalty is convex."""
        return self.penalty.convex

    @cached_property
    def edge_l1(self) -> Tensor:
        """The strength of the l1 norm by edges to entries that are not active, (1, entries)."""
        total = torch.zeros(self.cross.shape[1], dtype=torch.float64)
        for near, far in (self.ends, self.ends[::-1]):
            edge, row = ((near >= 0) & (far < 0)).nonzero().T
            total.index_add_(0, near[edge, row], self.gamma * self.penalty.edges.weight[edge])
        return total[None]

    def residual(self, beta: Tensor) -> Tensor:
        """Return A - G beta at the entries."""
        return self.cross - torch.from_numpy(self.gram @ beta[0].numpy())[None]

    def value(self, rows: Tensor) -> Tensor:
        """Return the whole penalty."""
        size = rows.abs()
        apart = self.edges.differences(rows).abs().sum()
        entries = self.penalty.single.phi(size).sum() + (self.edge_l1 * size).sum()
        return entries + self.gamma * apart

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of all but the differences."""
        size = (rows.abs() - step * self.edge_l1).clamp_min_(0)
        return self.penalty.prox_entries(size.copysign(rows), step)

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the factor that makes the residual dual feasible at the entries."""
        if not self.convex:
            return None
        left = residual if coupling is None else residual - coupling
        ratio = left.abs() / (self.penalty.lam + self.edge_l1)
        return min(1.0, 1 / max(float(ratio.amax()), 1e-300))

    def least_squares(self, right: Tensor, rho: float, near: Tensor) -> Tensor:
        """Return a step from `near` to the solution x of (G + rho (I + C^T C)) x = right.

        All columns are (entries, 1). C^T C is replaced by a diagonal D that dominates it, and
        (D - C^T C) near is moved to the right side: then the matrix is block-diagonal like G, and
        its factors have a tenth of the non-zeros that they would have with C^T C.
        """
        from scipy.sparse import diags
        from scipy.sparse.linalg import splu

        if rho not in self._factors:
            self._factors.clear()
            system = self.gram + rho * diags(1 + self._diagonal[:, 0].numpy())
            self._factors[rho] = splu(system.tocsc(), permc_spec="NATURAL")
        apart = self.edges.adjoint(self.edges.differences(near.T)).T
        moved = right + rho * (self._diagonal * near - apart)
        return torch.from_numpy(self._factors[rho].solve(moved.numpy()))

    @cached_property
    def _factors(self) -> dict[float, SuperLU]:
        return {}

    @cached_property
    def _diagonal(self) -> Tensor:
        """D, (entries, 1): row sums of |C^T C|."""
        squares = replace(self.edges, weight=self.edges.weight.square())
        return 2 * squares.degree[:, None]

    def gather(self, beta: Tensor) -> Tensor:
        """Return the active entries of a whole beta, (1, entries)."""
        outputs, inputs = self.positions
        return beta[inputs, outputs][None]

    def scatter(self, values: Tensor) -> Tensor:
        """Return the whole matrix (inputs, outputs) with these active entries."""
        outputs, inputs = self.positions
        beta = torch.zeros_like(self.problem.cross)
        beta[inputs, outputs] = values[0]
        return beta

    def whole_coupling(self, solution: Solution) -> Tensor:
        """Return the coupling of all edges, given the solution at the active entries.

        An edge with one active end gets the subgradient of its l1 norm that the residual implies.
        """
        beta, coupling = solution.beta, solution.coupling
        coupling = torch.zeros_like(beta) if coupling is None else coupling
        share = (self.residual(beta) - coupling) / (self.penalty.lam + self.edge_l1)
        signs = self.scatter(share.clamp(-1, 1)).T
        first, second = self.ends
        parent = self.penalty.edges
        dual = torch.where(second < 0, signs[parent.first], 0.0)
        dual -= torch.where(first < 0, parent.sign[:, None] * signs[parent.second], 0.0)
        return self.scatter(coupling) + parent.adjoint(dual.mul_(self.gamma))


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
            return self._solve_dense(problem, penalty, beta, 0)
        return self._solve_active(problem, penalty, beta)

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
                    solution = Solution(beta, objective, gap, iterations, converged, coupling)
                    return self.warn_unless_converged(solution)
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
        total = solution.iterations + iterations
        return self.warn_unless_converged(replace(solution, iterations=total))

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
