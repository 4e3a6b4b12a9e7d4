"""The graph-structured lasso restricted to the entries of beta that are active."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.regression import DualPenalty, Regression, Solution

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import SuperLU


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
