"""The graph-structured fused lasso: columns of a matrix that are neighbours become similar."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.dual_norm import largest_dual_norm
from prunekit.methods.gram_lasso.regression import StructuredPenalty
from prunekit.penalties.base import RadialPenalty
from prunekit.penalties.magnitude import L1
from prunekit.schema import NotNegative
from prunekit.validate import integer, number


@dataclass(frozen=True, eq=False)
class Edges:
    """The edges of an undirected graph without loops; each pair of nodes appears at most once.

    `first` and `second` are node numbers (long), `weight` >= 0 and `sign` +-1 (double), one entry
    per edge. Weights are absolute similarities (Chen et al. 2010), signs those of similarities.
    """

    first: Tensor
    second: Tensor
    weight: Tensor
    sign: Tensor
    nodes: int

    def __post_init__(self) -> None:
        integer("nodes", self.nodes, at_least=1)
        low, high = torch.minimum(self.first, self.second), torch.maximum(self.first, self.second)
        if len({len(part) for part in (low, high, self.weight, self.sign)}) > 1:
            raise ConfigError(f"edges of {len(low)} pairs need as many weights and signs")
        if bool((low == high).any()) or len(torch.unique(low * self.nodes + high)) < len(low):
            raise ConfigError("a pair of nodes is given twice or is a loop; give each pair once")
        if len(low) and (int(low.min()) < 0 or int(high.max()) >= self.nodes):
            raise ConfigError(f"an edge ends outside the {self.nodes} nodes")
        if bool((self.weight < 0).any()) or bool((self.sign.abs() != 1).any()):
            raise ConfigError("weights of edges must be at least 0 and signs 1 or -1")

    @classmethod
    def top(cls, similarity: Tensor, k: int) -> Edges:
        """Join every node with the `k` nodes of largest absolute similarity; ties go in order."""
        integer("k", k, at_least=1)
        size = _absolute(similarity)
        near = size.argsort(dim=1, descending=True, stable=True)[:, : min(k, len(size) - 1)]
        mask = torch.zeros_like(size, dtype=torch.bool).scatter_(1, near, True)
        return cls._from_mask(similarity, mask | mask.T)

    @classmethod
    def quantile(cls, similarity: Tensor, share: float) -> Edges:
        """Join the `share` of all pairs with the largest absolute similarity."""
        number("share", share, at_least=0, at_most=1)
        size = _absolute(similarity)
        pairs = torch.triu_indices(len(size), len(size), 1)
        order = size[pairs[0], pairs[1]].argsort(descending=True, stable=True)
        first, second = pairs[:, order[: round(share * len(order))]]
        mask = torch.zeros_like(size, dtype=torch.bool)
        mask[first, second] = True
        return cls._from_mask(similarity, mask)

    @classmethod
    def threshold(cls, similarity: Tensor, least: float) -> Edges:
        """Join all pairs with an absolute similarity of at least `least` (rho in the paper)."""
        number("least", least, at_least=0)
        return cls._from_mask(similarity, _absolute(similarity) >= least)

    @classmethod
    def _from_mask(cls, similarity: Tensor, mask: Tensor) -> Edges:
        """Join the pairs in the mask; pairs without similarity would have no effect."""
        wide = similarity.double().cpu()
        first, second = (mask & (wide != 0)).triu(1).nonzero().T
        values = wide[first, second]
        return cls(first, second, values.abs(), values.sign(), len(wide))

    def without_edges(self) -> Edges:
        """Return the graph of the same nodes without edges."""
        none = slice(0)
        return Edges(
            self.first[none], self.second[none], self.weight[none], self.sign[none], self.nodes
        )

    @cached_property
    def degree(self) -> Tensor:
        """The sum of the weights at every node."""
        total = torch.zeros(self.nodes, dtype=torch.float64)
        return total.index_add_(0, self.first, self.weight).index_add_(0, self.second, self.weight)

    @cached_property
    def laplacian(self) -> Tensor:
        """C^T C, where the row of C for an edge has w at the first node, -sign w at the second."""
        square = self.weight.square()
        matrix = torch.zeros(self.nodes, self.nodes, dtype=torch.float64)
        cross = -self.sign * square
        for ends, value in (
            ((self.first, self.first), square),
            ((self.second, self.second), square),
            ((self.first, self.second), cross),
            ((self.second, self.first), cross),
        ):
            matrix.index_put_(ends, value, accumulate=True)
        return matrix

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues and eigenvectors of `laplacian`."""
        values, vectors = torch.linalg.eigh(self.laplacian)
        return values, vectors

    def differences(self, beta: Tensor) -> Tensor:
        """Return C beta^T, the weighted differences of columns, (edges, rows).

        It is fast if beta.T is contiguous.
        """
        columns = beta.T
        result = columns.index_select(0, self.second).mul_(-self.sign[:, None])
        return result.add_(columns.index_select(0, self.first)).mul_(self.weight[:, None])

    def adjoint(self, dual: Tensor) -> Tensor:
        """Return dual^T C, (rows, nodes), the adjoint of `differences` at `dual` (edges, rows)."""
        total = torch.zeros(self.nodes, dual.shape[1], dtype=dual.dtype)
        total.index_add_(0, self.first, dual * self.weight[:, None])
        total.index_add_(0, self.second, dual * (-self.sign * self.weight)[:, None])
        return total.T


def _absolute(similarity: Tensor) -> Tensor:
    """Return absolute similarities with -1 on the diagonal, so that no node joins itself."""
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ConfigError(f"similarities of shape {tuple(similarity.shape)} are not square")
    if not bool(similarity.isfinite().all()):
        raise ConfigError("similarities are not finite; leave dead channels out or set them to 0")
    return similarity.double().cpu().abs().fill_diagonal_(-1.0)


@dataclass(frozen=True, eq=False)
class GraphLasso(StructuredPenalty):
    """entries(beta) + gamma sum_e w_e sum_k |beta_km - sign beta_kl| over edges (Liu et al. eq. 5).

    Rows of beta are input channels, columns are the nodes of the graph. `kappa` is the strength of
    the coupling at a node of mean weighted degree, relative to lam: gamma = kappa lam / mean
    degree. `entries` takes the place of the l1 norm of single entries. The penalty has no closed
    prox: solvers split it into two simple proxes, or smooth the differences.
    """

    edges: Edges
    kappa: Annotated[NotNegative, "coupling of neighbours, relative to lam"]
    offers: ClassVar[frozenset[str]] = frozenset({"subgradient", "smoothing", "splitting"})

    @cached_property
    def gamma(self) -> float:
        """The strength of the differences; 0 without edges."""
        mean = float(self.edges.degree.mean())
        return self.kappa * self.lam / mean if mean > 0 else 0.0

    def value(self, rows: Tensor) -> Tensor:
        """Return the sum of both parts, a scalar tensor."""
        wide = rows.double()
        apart = self.edges.differences(wide).abs().sum()
        return self.single.phi(wide.abs().flatten()).sum() + self.gamma * apart

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Raise ConfigError: the penalty has no closed prox."""
        raise ConfigError(
            "GraphLasso has no closed prox; choose the solver GraphADMM or "
            "SmoothingProximalGradient"
        )

    def subgradient(self, rows: Tensor) -> Tensor:
        """Return the subgradient that is zero where an entry or a difference is zero."""
        wide = rows.double()
        coupling = self.edges.adjoint(self.edges.differences(wide).sign())
        size = wide.abs()
        slope = torch.where(size > 0, self.single.slope(size.clamp_min(1e-300)), 0.0) * wide.sign()
        return (slope + self.gamma * coupling).to(rows.dtype)

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of the penalty of single entries."""
        return prox_of_entries(self.single, rows, step)

    def smoothed_gradient(self, rows: Tensor, mu: float) -> Tensor:
        """Return the gradient of the differences' part, smoothed by `mu`."""
        dual = (self.edges.differences(rows) * (self.gamma / mu)).clamp_(-1, 1)
        return self.edges.adjoint(dual).mul_(self.gamma)

    def curvature(self, mu: float) -> float:
        """Return gamma^2 lambda_max(C^T C) / mu."""
        return self.gamma**2 * max(0.0, float(self.edges.spectrum[0][-1])) / mu

    def smoothing_error(self, rows: int) -> float:
        """Return half the number of differences."""
        return 0.5 * rows * len(self.edges.weight) if self.gamma > 0 else 0.0

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the factor in (0, 1] that makes the residual dual feasible; None if not convex.

        `coupling` is gamma dual^T C for a dual within +-1; without it, the dual is zero.
        """
        if not self.convex:
            return None
        largest = float((residual if coupling is None else residual - coupling).abs().amax())
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def lam_max(self, cross: Tensor) -> float:
        """Return the smallest lam for which zero is optimal, which falls as `kappa` rises.

        If the penalty is not convex, it is that of single entries, which is an upper bound.
        """
        unit = replace(self, lam=1.0)
        if not self.convex or unit.gamma == 0 or not bool(cross.any()):
            return self.entries(1.0).lam_max(cross.reshape(-1, 1))
        return largest_dual_norm(cross.double(), self.edges, unit.gamma)

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Return the norm of each row of the entries' prox of step 1, an upper bound."""
        excess: Tensor = self.prox_entries(residual, 1.0).norm(dim=1)
        return excess


def prox_of_entries(single: RadialPenalty, rows: Tensor, step: float) -> Tensor:
    """Return the prox of a penalty of single entries, of a double matrix."""
    if type(single) is L1:
        return torch.nn.functional.softshrink(rows, step * single.lam)
    size = rows.abs()
    return single.prox_magnitude(size.flatten(), step).reshape(rows.shape) * rows.sign()
