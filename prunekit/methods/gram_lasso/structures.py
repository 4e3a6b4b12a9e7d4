"""What ties the output channels of a layer together: a graph, or a tree."""

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
    Literal["average", "complete", "single"], "how far two clusters of the dendrogram are apart"
]


class Pairs(Checked, ABC):
    """A rule which output channels are neighbours."""

    @abstractmethod
    def edges(self, similarity: Tensor) -> Edges:
        """The edges of a graph over channels with these similarities, (channels, channels)."""


@dataclass(frozen=True)
class Nearest(Pairs):
    """Every channel and its `count` most similar ones."""

    count: Annotated[Count, "neighbours of each channel"] = 3

    def edges(self, similarity: Tensor) -> Edges:
        """Pairs that are near for one of both."""
        return Edges.top(similarity, self.count)


@dataclass(frozen=True)
class Strongest(Pairs):
    """The `share` of all pairs that is most similar."""

    share: Annotated[SomeShare, "of all pairs"] = 0.05

    def edges(self, similarity: Tensor) -> Edges:
        """Pairs above a quantile of the absolute similarities."""
        return Edges.quantile(similarity, self.share)


@dataclass(frozen=True)
class Above(Pairs):
    """Pairs of at least one absolute similarity, whatever the layer; published code has 0.5."""

    least: Annotated[Share, "absolute similarity; published code has 0.5, 0.6 and 0.618"] = 0.5

    def edges(self, similarity: Tensor) -> Edges:
        """Where kernels are centred with a bias, that may be nearly all pairs."""
        return Edges.threshold(similarity, self.least)


class Structure(Checked, ABC):
    """Makes the penalty of a layer from the similarities of its output channels."""

    @abstractmethod
    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """The penalty at each strength lam; the structure itself is found once."""


@dataclass(frozen=True)
class Graph(Structure):
    """Entries shrink, and those of neighbours in the same row are drawn together (eq. 5).

    `kappa` is the coupling relative to lam, for a node of the mean weighted degree.
    """

    pairs: Annotated[Pairs, "which channels are neighbours"] = Nearest()
    kappa: Annotated[NotNegative, "coupling, relative to lam and the mean weighted degree"] = 0.03
    entries: Annotated[EntryPenalty, "penalty of single entries, called with lam"] = L1

    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """Weights of edges are absolute similarities."""
        edges = self.pairs.edges(similarity)
        return lambda lam: GraphLasso(lam, edges, kappa=self.kappa, entries=self.entries)


@dataclass(frozen=True)
class Hierarchy(Structure):
    """Groups of columns that a dendrogram puts together shrink together (eqs. 6 and 7).

    Per row as published, or whole columns at once with `blocks`. With `mix` leaves weigh one and
    inner nodes `mix` times what eq. 7 gives. Nodes above `cut` of the root's height are left out,
    and no share `s` is below `floor`, since near copies would leave their leaves no weight at all.
    """

    linkage: Linkage = "average"
    _: KW_ONLY
    blocks: Annotated[bool, "groups are whole columns"] = False
    mix: Annotated[
        NotNegative | None, "leaves weigh 1, inner nodes this times; null: as published"
    ] = None
    cut: Annotated[SomeShare | None, "leaves out nodes above this share of the height"] = None
    floor: Annotated[Share, "the least share that passes on to the children of a node"] = 0.0
    entries: Annotated[EntryPenalty, "penalty of single entries, called with lam"] = L1

    def penalty(self, similarity: Tensor) -> Callable[[float], Penalty]:
        """Distances are one minus the similarity."""
        tree = Tree.linkage(similarity, self.linkage, cut=self.cut, floor=self.floor)
        kind = BlockTreeLasso if self.blocks else TreeLasso
        return lambda lam: kind(lam, tree, mix=self.mix, entries=self.entries)
