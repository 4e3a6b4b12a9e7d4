"""A regression with fused differences on a few entries of beta, the others being zero."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.regression.problem import Regression, Solution

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Graph = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Alive:
    """Entries of beta that may be non-zero, as the columns of a matrix with one row.

    It is problem and penalty in one: `gram` is block-diagonal, a block for every column of beta;
    `edges` join entries of one row whose columns are neighbours. An edge that ends at an entry
    outside is an l1 norm of the entry inside: `extra`.
    """

    problem: Regression
    penalty: GraphLasso
    chosen: Tensor  # (outputs, inputs), bool

    @cached_property
    def places(self) -> Graph:
        """The outputs and the inputs of the entries, sorted by outputs."""
        outputs, inputs = self.chosen.nonzero().T
        return outputs, inputs

    @cached_property
    def cross(self) -> Tensor:
        """Their entries of A, (1, entries)."""
        outputs, inputs = self.places
        return self.problem.cross[inputs, outputs][None]

    @property
    def energy(self) -> float:
        """That of the whole problem."""
        return self.problem.energy

    @cached_property
    def gram(self) -> csr_matrix:
        """G between entries of the same column, (entries, entries)."""
        from scipy.sparse import csr_matrix  # late: few runs need it

        outputs, inputs = (part.numpy() for part in self.places)
        counts = np.bincount(outputs, minlength=len(self.chosen))
        starts = np.cumsum(counts) - counts
        per = counts[outputs]  # partners of every entry
        pointers = np.concatenate([[0], np.cumsum(per)])
        partners = np.arange(pointers[-1]) - np.repeat(pointers[:-1] - starts[outputs], per)
        values = self.problem.gram.numpy()[np.repeat(inputs, per), inputs[partners]]
        return csr_matrix((values, partners, pointers), shape=(len(inputs), len(inputs)))

    @cached_property
    def ends(self) -> Graph:
        """The entry at both ends of every edge in every row, (edges, inputs); -1 where outside."""
        numbers = torch.full(self.chosen.shape, -1)
        numbers[self.chosen] = torch.arange(len(self.places[0]))
        parent = self.penalty.edges
        return numbers[parent.first], numbers[parent.second]

    @cached_property
    def edges(self) -> Edges:
        """Edges with both ends inside."""
        first, second = self.ends
        edge, row = ((first >= 0) & (second >= 0)).nonzero().T
        parent, count = self.penalty.edges, self.cross.shape[1]
        ends = first[edge, row], second[edge, row]
        return Edges(*ends, parent.weight[edge], parent.sign[edge], max(1, count))

    @property
    def gamma(self) -> float:
        """The coupling of the whole penalty."""
        return self.penalty.gamma

    @property
    def convex(self) -> bool:
        """As the whole penalty is."""
        return self.penalty.convex

    @cached_property
    def extra(self) -> Tensor:
        """Coupling to entries outside, (1, entries)."""
        total = torch.zeros(self.cross.shape[1], dtype=torch.float64)
        for inside, outside in (self.ends, self.ends[::-1]):
            edge, row = ((inside >= 0) & (outside < 0)).nonzero().T
            total.index_add_(0, inside[edge, row], self.gamma * self.penalty.edges.weight[edge])
        return total[None]

    def residual(self, beta: Tensor) -> Tensor:
        """A - G beta at the entries."""
        return self.cross - torch.from_numpy(self.gram @ beta[0].numpy())[None]

    def value(self, beta: Tensor) -> Tensor:
        """The whole penalty."""
        size = beta.abs()
        apart = self.edges.differences(beta).abs().sum()
        return self.penalty.single.phi(size).sum() + (self.extra * size).sum() + self.gamma * apart

    def prox_entries(self, beta: Tensor, step: float) -> Tensor:
        """The prox of all but the differences; a linear term only shifts it."""
        size = (beta.abs() - step * self.extra).clamp_min_(0)
        return self.penalty.prox_entries(size.copysign(beta), step)

    def feasible(
        self, residual: Tensor, pull: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """The factor that makes the residual dual feasible at the entries."""
        if not self.convex:
            return None
        left = residual if pull is None else residual - pull
        ratio = left.abs() / (self.penalty.lam + self.extra)
        return min(1.0, 1 / max(float(ratio.amax()), 1e-300))

    def least_squares(self, right: Tensor, rho: float, near: Tensor) -> Tensor:
        """A step from `near` to the solution x of (G + rho (I + C^T C)) x = right side.

        C^T C is replaced by a diagonal D that is above it, and (D - C^T C) near moves to the right:
        G is block-diagonal, so the factors fill no more than its blocks, which with C^T C would be
        ten times as much. Columns are (entries, 1).
        """
        from scipy.sparse import diags
        from scipy.sparse.linalg import splu

        if rho not in self._factors:
            self._factors.clear()
            system = self.gram + rho * diags(1 + self._above[:, 0].numpy())
            self._factors[rho] = splu(system.tocsc(), permc_spec="NATURAL")
        apart = self.edges.gathered(self.edges.differences(near.T)).T
        moved = right + rho * (self._above * near - apart)
        return torch.from_numpy(self._factors[rho].solve(moved.numpy()))

    @cached_property
    def _factors(self) -> dict:
        return {}

    @cached_property
    def _above(self) -> Tensor:
        """D, (entries, 1): sums of the absolute rows of C^T C."""
        squares = replace(self.edges, weight=self.edges.weight.square())
        return 2 * squares.degree[:, None]

    def start(self, beta: Tensor) -> Tensor:
        """The entries of a whole beta, (1, entries)."""
        outputs, inputs = self.places
        return beta[inputs, outputs][None]

    def whole(self, values: Tensor) -> Tensor:
        """The whole matrix, (inputs, outputs), with these entries."""
        outputs, inputs = self.places
        beta = torch.zeros_like(self.problem.cross)
        beta[inputs, outputs] = values[0]
        return beta

    def whole_pull(self, found: Solution) -> Tensor:
        """What all edges take off the residual, given a solution at the entries.

        The share of an edge that leaves the set is that of the entry's own subgradient.
        """
        pull = torch.zeros_like(found.beta) if found.pull is None else found.pull
        share = (self.residual(found.beta) - pull) / (self.penalty.lam + self.extra)
        signs = self.whole(share.clamp(-1, 1)).T
        first, second = self.ends
        parent = self.penalty.edges
        alone = torch.where(second < 0, signs[parent.first], 0.0)
        alone -= torch.where(first < 0, parent.sign[:, None] * signs[parent.second], 0.0)
        return self.whole(pull) + parent.gathered(alone.mul_(self.gamma))
