"""Structures over the output channels of a layer: a graph, or a tree, and their penalties."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Literal

from torch import Tensor

from prunekit.methods.gram_lasso.graph_lasso import Edges, GraphLasso
from prunekit.methods.gram_lasso.tree_lasso import BlockTreeLasso, Tree, TreeLasso
from prunekit.penalties import L1, Penalty
from prunekit.penalties.base import RadialPenalty
from prunekit.schema import Checked, Count, NotNegative, Share, SomeShare

EntryPenalty = Callable[[float], RadialPenalty]
Linkage = Annotated[
    Literal["average", "complete", "single"], "distance of two clusters of the dendrogram"
]


class Pairs(Checked, ABC):
    """Decides which output channels are neighbours in the graph."""

    @abstractmethod
    def edges(self, similarity: Tensor) -> Edges:
        """Return the edges for similarities of shape (channels, channels)."""


@dataclass(frozen=True)
class Nearest(Pairs):
    """Joins every channel with the `count` channels most similar to it."""

    count: Annotated[Count, "neighbours of each channel"] = 3

    def edges(self, similarity: Tensor) -> Edges:
        """Return the pairs in which one channel is among the nearest of the other."""
        return Edges.top(similarity, self.count)


@dataclass(frozen=True)
class Strongest(Pairs):
    """Joins the `share` of all pairs with the largest absolute similarity."""

    share: Annotated[SomeShare, "share of all pairs"] = 0.05

    def edges(self, similarity: Tensor) -> Edges:
        """Return the pairs above a quantile of the absolute similarities."""
        return Edges.quantile(similarity, self.share)


@dataclass(frozen=True)
class Above(Pairs):
    """Joins pairs with an absolute similarity of at least `least`, as published.

    With kernels centred by `hkh` these may be nearly all pairs.
    """

    least: Annotated[Share, "absolute similarity; published code has 0.5, 0.6 and 0.618"] = 0.5

    def edges(self, similarity: Tensor) -> Edges:
        """Return the pairs above the threshold."""
        return Edges.threshold(similarity, self.least)


class Structure(Checked, ABC):
    """Builds the penalty of a layer from the similarities of its output channels."""

    @abstractmethod
    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """Return a function from lam to the penalty; the structure is computed once."""


@dataclass(frozen=True)
class Graph(Structure):
    """A graph lasso: coefficients of neighbours in the same row become similar (eq. 5).

    `kappa` is the coupling at a node of mean weighted degree, relative to lam.
    """

    pairs: Annotated[Pairs, "which channels are neighbours"] = Nearest()
    kappa: Annotated[NotNegative, "coupling, relative to lam and the mean weighted degree"] = 0.03
    entries: Annotated[EntryPenalty, "penalty of single entries, called with lam"] = L1

    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """Return the graph lasso whose edges are weighted by absolute similarities."""
        edges = self.pairs.edges(similarity)
        return lambda lam: GraphLasso(lam, edges, kappa=self.kappa, entries=self.entries)


@dataclass(frozen=True)
class Hierarchy(Structure):
    """A tree lasso: coefficients of channels that a dendrogram joins vanish together (eqs. 6, 7).

    As published, a group is part of one row; with `blocks` it is whole columns. With `mix`, leaves
    have weight 1 and inner nodes `mix` times the weight of eq. 7. Nodes above `cut` of the root's
    height have no penalty. `floor` is a lower bound of s in eq. 7, without which near copies leave
    their leaves no weight.
    """

    linkage: Linkage = "average"
    _: KW_ONLY
    blocks: Annotated[bool, "groups are whole columns, not parts of one row"] = False
    mix: Annotated[
        NotNegative | None, "factor on inner nodes, with leaves of weight 1; null: as published"
    ] = None
    cut: Annotated[SomeShare | None, "share of the height above which nodes have no penalty"] = None
    floor: Annotated[Share, "lower bound of the share s of eq. 7"] = 0.0
    entries: Annotated[EntryPenalty, "penalty of single entries, called with lam"] = L1

    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """Return the tree lasso of the dendrogram of 1 - similarity."""
        tree = Tree.linkage(similarity, self.linkage, cut=self.cut, floor=self.floor)
        kind = BlockTreeLasso if self.blocks else TreeLasso
        return lambda lam: kind(lam, tree, mix=self.mix, entries=self.entries)
