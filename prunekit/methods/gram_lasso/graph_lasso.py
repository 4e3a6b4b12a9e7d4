"""The graph-structured fused lasso: neighbouring columns of a matrix are drawn together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.smoothed import StructuredPenalty
from prunekit.penalties.base import RadialPenalty
from prunekit.penalties.magnitude import L1
from prunekit.schema import NotNegative
from prunekit.validate import integer, number


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of nodes of an undirected graph, each pair once, without loops.

    `first` and `second` are long node numbers, `weight` >= 0 and `sign` +-1 doubles: one entry an
    edge. Weights are absolute similarities (Chen et al. 2010), signs those of the similarities.
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
        """Every node and its `k` neighbours of largest absolute similarity; pairs are united.

        Of equal ones those with the smallest numbers are taken.
        """
        integer("k", k, at_least=1)
        size = _pairs_of(similarity)
        near = size.argsort(dim=1, descending=True, stable=True)[:, : min(k, len(size) - 1)]
        chosen = torch.zeros_like(size, dtype=torch.bool).scatter_(1, near, True)
        return cls._where(similarity, chosen | chosen.T)

    @classmethod
    def quantile(cls, similarity: Tensor, share: float) -> Edges:
        """The `share` of all pairs with the largest absolute similarity, rounded to a count."""
        number("share", share, at_least=0, at_most=1)
        size = _pairs_of(similarity)
        pairs = torch.triu_indices(len(size), len(size), 1)
        order = size[pairs[0], pairs[1]].argsort(descending=True, stable=True)
        first, second = pairs[:, order[: round(share * len(order))]]
        chosen = torch.zeros_like(size, dtype=torch.bool)
        chosen[first, second] = True
        return cls._where(similarity, chosen)

    @classmethod
    def threshold(cls, similarity: Tensor, least: float) -> Edges:
        """All pairs of an absolute similarity of `least` or more (rho of the paper)."""
        number("least", least, at_least=0)
        return cls._where(similarity, _pairs_of(similarity) >= least)

    @classmethod
    def _where(cls, similarity: Tensor, chosen: Tensor) -> Edges:
        """Chosen pairs, but for those without any similarity, which pull nothing."""
        wide = similarity.double().cpu()
        first, second = (chosen & (wide != 0)).triu(1).nonzero().T
        r = wide[first, second]
        return cls(first, second, r.abs(), r.sign(), len(wide))

    def none(self) -> Edges:
        """The same nodes without edges."""
        return Edges(*(part[:0] for part in self._parts), self.nodes)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.first, self.second, self.weight, self.sign

    @cached_property
    def degree(self) -> Tensor:
        """The sum of the weights at every node."""
        total = torch.zeros(self.nodes, dtype=torch.float64)
        return total.index_add_(0, self.first, self.weight).index_add_(0, self.second, self.weight)

    @cached_property
    def laplacian(self) -> Tensor:
        """C^T C, a row of C being an edge: w in the first column, -sign w in the second."""
        square = self.weight.square()
        matrix = torch.zeros(self.nodes, self.nodes, dtype=torch.float64)
        cross = -self.sign * square
        for at, value in (
            ((self.first, self.first), square),
            ((self.second, self.second), square),
            ((self.first, self.second), cross),
            ((self.second, self.first), cross),
        ):
            matrix.index_put_(at, value, accumulate=True)
        return matrix

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of `laplacian`; computed once."""
        return torch.linalg.eigh(self.laplacian)

    def differences(self, beta: Tensor) -> Tensor:
        """C beta^T, (edges, rows): weighted differences of columns. Fast where beta.T is dense."""
        columns = beta.T
        found = columns.index_select(0, self.second).mul_(-self.sign[:, None])
        return found.add_(columns.index_select(0, self.first)).mul_(self.weight[:, None])

    def gathered(self, dual: Tensor) -> Tensor:
        """The adjoint of `differences`: dual^T C, (rows, nodes), of a dual (edges, rows)."""
        total = torch.zeros(self.nodes, dual.shape[1], dtype=dual.dtype)
        total.index_add_(0, self.first, dual * self.weight[:, None])
        total.index_add_(0, self.second, dual * (-self.sign * self.weight)[:, None])
        return total.T


def _pairs_of(similarity: Tensor) -> Tensor:
    """Absolute similarities with -1 on the diagonal, so that no node is its own neighbour."""
    if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ConfigError(f"similarities of shape {tuple(similarity.shape)} are not square")
    if not bool(similarity.isfinite().all()):
        raise ConfigError("similarities are not finite; leave dead channels out or set them to 0")
    return similarity.double().cpu().abs().fill_diagonal_(-1.0)


@dataclass(frozen=True, eq=False)
class GraphLasso(StructuredPenalty):
    """entries(beta) + gamma sum_e w_e sum_k |beta_km - sign beta_kl| over edges (Liu et al. eq. 5).

    Rows of beta are input channels, columns the nodes of the graph. `kappa` is the coupling that a
    node of mean weighted degree feels, relative to lam: gamma = kappa lam / mean degree. `entries`
    is what stands for the l1 part on single entries. It has no closed prox: solvers split it (two
    easy proxes) or smooth the differences.
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
        """Both parts, a scalar tensor."""
        wide = rows.double()
        apart = self.edges.differences(wide).abs().sum()
        return self.single.phi(wide.abs().flatten()).sum() + self.gamma * apart

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Not offered: raises ConfigError."""
        raise ConfigError(
            "GraphLasso has no closed prox; choose the solver GraphADMM or "
            "SmoothingProximalGradient"
        )

    def subgradient(self, rows: Tensor) -> Tensor:
        """Slopes of entries and differences; zero where an entry or a difference is zero."""
        wide = rows.double()
        pull = self.edges.gathered(self.edges.differences(wide).sign())
        size = wide.abs()
        slope = torch.where(size > 0, self.single.slope(size.clamp_min(1e-300)), 0.0) * wide.sign()
        return (slope + self.gamma * pull).to(rows.dtype)

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """The prox of the entries' part alone."""
        return shrunk(self.single, rows, step)

    def smooth_pull(self, rows: Tensor, mu: float) -> Tensor:
        """The gradient of the differences' part, smoothed by mu (Chen et al. 2012).

        The smoothed part is below the part itself by at most mu * rows * edges / 2.
        """
        dual = (self.edges.differences(rows) * (self.gamma / mu)).clamp_(-1, 1)
        return self.edges.gathered(dual).mul_(self.gamma)

    def curvature(self, mu: float) -> float:
        """A Lipschitz constant of `smooth_pull`: gamma^2 lambda_max(C^T C) / mu."""
        return self.gamma**2 * max(0.0, float(self.edges.spectrum[0][-1])) / mu

    def spread(self, count: int) -> float:
        """What mu is multiplied by in the smoothing error of `count` rows."""
        return 0.5 * count * len(self.edges.weight) if self.gamma > 0 else 0.0

    def feasible(
        self, residual: Tensor, pull: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """The factor in (0, 1] that makes the residual dual feasible; None where not convex.

        `pull` is dual^T C gamma for a dual within +-1; without it the differences count as free.
        """
        if not self.convex:
            return None
        largest = float((residual if pull is None else residual - pull).abs().amax())
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def vanishing(self, cross: Tensor) -> float:
        """An upper bound of the lam from which zero is optimal: that of the entries alone.

        Coupling can make zero optimal before: with all columns fused, from max_k |mean_j A_kj|.
        """
        return self.entries(1.0).vanishing(cross.reshape(-1, 1))

    def excess(self, residual: Tensor) -> Tensor:
        """What the entries' prox of step one leaves of each row; coupling could only hold it."""
        return self.prox_entries(residual, 1.0).norm(dim=1)


def shrunk(single: RadialPenalty, rows: Tensor, step: float) -> Tensor:
    """The prox of a penalty of single entries, on a double matrix."""
    size = rows.abs()
    if type(single) is L1:
        return torch.nn.functional.softshrink(rows, step * single.lam)
    return single.shrink(size.flatten(), step).reshape(rows.shape) * rows.sign()
