"""sGLP-IB and sTLP-IB (Liu et al. 2025), and what they are compared with: APIB, representatives."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria.activations import training_data
from prunekit.criteria.base import CRITERIA, Criterion, Scores, seen_groups
from prunekit.methods.gram_lasso.entry import EntryOrder, Ordering
from prunekit.methods.gram_lasso.features import WholeOutput
from prunekit.methods.gram_lasso.gram_criterion import OnTables, scored_layers
from prunekit.methods.gram_lasso.gram_tables import Tables
from prunekit.methods.gram_lasso.regression.admm import GraphADMM
from prunekit.methods.gram_lasso.regression.fista import FISTA
from prunekit.methods.gram_lasso.regression.problem import Regression, RegressionSolver
from prunekit.methods.gram_lasso.statistics import Statistics
from prunekit.methods.gram_lasso.structures import Graph, Hierarchy, Linkage, Structure
from prunekit.penalties import L1

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_UNREAD = "is read by a layer that mixes its channels; use for instance criterion=max_cka"
_NONE = torch.empty(0, dtype=torch.long)


@CRITERIA.register("sglp")
@dataclass(frozen=True)
class StructuredLasso(OnTables):
    """Filters by when their columns enter a regression of output on input similarities (eq. 4).

    `structure` is a graph (sGLP-IB) or a tree (sTLP-IB) over the output channels, found from their
    similarities; `solver` must fit its penalty.
    """

    structure: Annotated[Structure, "what ties filters together"] = field(default_factory=Graph)
    solver: Annotated[
        RegressionSolver, "must fit the structure; published: SmoothingProximalGradient"
    ] = field(default_factory=GraphADMM)
    order: Annotated[Ordering, "how coefficients become scores"] = field(default_factory=EntryOrder)

    def worth(self, tables: Tables, layer: str) -> Tensor:
        """What `order` makes of the solutions; dead outputs score lowest."""
        penalty_at = self.structure.penalty(tables.similarity)
        self.solver.check(penalty_at(1.0))
        problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
        return self.order.scores(problem, penalty_at, self.solver, layer)


@CRITERIA.register("stlp")
def tree_lasso(structure: Structure | None = None) -> StructuredLasso:
    """sTLP-IB: groups are the entries of a row that a dendrogram joins."""
    return StructuredLasso(structure=structure or Hierarchy(), solver=FISTA())


@CRITERIA.register("stlp_block")
def block_tree_lasso() -> StructuredLasso:
    """sTLP-IB read another way: groups are whole columns."""
    return tree_lasso(Hierarchy(blocks=True))


@CRITERIA.register("stlp_mixed")
def mixed_tree_lasso() -> StructuredLasso:
    """sTLP-IB with a full l1 part and little of the tree; ours."""
    return tree_lasso(Hierarchy(mix=0.05))


@CRITERIA.register("representatives")
@dataclass(frozen=True)
class Representatives(OnTables):
    """One filter of every cluster: what structured pruning promises, and its penalties do not do.

    Ours. Clusters are those of a dendrogram over output similarities. Where two of them join, the
    one whose best filter has the smaller `MaxCKA` score loses it; a filter scores the height at
    which it is lost. Keeping the n best leaves one filter in each of n clusters.
    """

    linkage: Linkage = "average"

    def worth(self, tables: Tables, layer: str) -> Tensor:
        """Heights of the dendrogram; the best filter of all scores above every height."""
        worth = tables.cross.abs().amax(0)
        scores = lost_at(tables.similarity, worth, self.linkage)
        return torch.where(tables.dead_outputs, torch.zeros_like(scores), scores)


def lost_at(similarity: Tensor, worth: Tensor, method: str) -> Tensor:
    """The height at which every item stops being the best of its cluster, above 0."""
    from scipy.cluster.hierarchy import linkage  # half a second, and few runs need them
    from scipy.spatial.distance import squareform

    count = len(worth)
    scores = torch.full((count,), torch.inf, dtype=torch.float64)
    best = list(range(count))
    distance = (1 - similarity).clamp_min(0).double().fill_diagonal_(0)
    merges = linkage(squareform(distance.numpy(), checks=False), method) if count > 1 else ()
    for first, second, height, _ in merges:
        pair = sorted((best[int(first)], best[int(second)]), key=lambda item: float(worth[item]))
        scores[pair[0]] = height
        best.append(pair[1])
    top = float(merges[-1][2]) if count > 1 else 0.0
    return scores.clamp_max(2 * top + 1)


@CRITERIA.register("apib")
@dataclass(frozen=True)
class APIB(Criterion):
    """Channels by when they enter a lasso on the similarity of the layer that reads them.

    Automatic pruning by an information bottleneck (the predecessor of sGLP-IB): one response, the
    similarity of the whole output; what has a zero coefficient is an input channel. The released
    code bisects one strength for all layers; here widths are the selection's, so that methods
    compare at equal ones. Units that several layers read get the best of their places.
    """

    _: KW_ONLY
    similarity: Annotated[Statistics, "how channels are compared"] = field(
        default_factory=Statistics
    )
    solver: Annotated[RegressionSolver, "of the lasso"] = field(default_factory=FISTA)
    order: Annotated[EntryOrder, "how coefficients become scores"] = field(
        default_factory=EntryOrder
    )

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups that several layers write have no score, as for the other criteria on tables."""
        data = training_data(data, "APIB")
        made = torch.cat([graph.outs[n].cpu() for n in scored_layers(model, graph)] or [_NONE])
        readers = [n for n in graph.uses if _reads(model, graph, n, made)]
        whole = replace(self.similarity, responses=WholeOutput())
        tables = whole.of(model, graph, data, device, readers)
        total, seen = torch.zeros(graph.count, dtype=torch.float64), torch.zeros(graph.count)
        for name in track([*tables], "solving", len(tables)):
            units = tables[name].input_units
            total.scatter_reduce_(0, units, self._worth(tables[name]), "amax")
            seen[units] = 1
        seen[0] = 0  # what is fixed
        return seen_groups(graph, total, seen * _held(made, graph.count), _UNREAD)

    def _worth(self, tables: Tables) -> Tensor:
        """Places of the input channels of a layer."""
        problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
        return self.order.of_rows(problem, L1, self.solver)


def _reads(model: nn.Module, graph: ChannelGraph, name: str, units: Tensor) -> bool:
    """Whether a layer mixes channels among these units."""
    layer = model.get_submodule(name)
    mixes = isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1
    return mixes and bool(torch.isin(graph.ins[name].cpu(), units).any())


def _held(units: Tensor, count: int) -> Tensor:
    """A vector over unit ids, 1 where a unit is among these."""
    return torch.zeros(count).index_fill_(0, units, 1)
