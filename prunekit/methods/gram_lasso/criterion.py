"""sGLP-IB and sTLP-IB (Liu et al. 2025) and the criteria they are compared with."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria.base import (
    CRITERIA,
    Criterion,
    Scores,
    require_data,
    scores_of_complete_groups,
    split_by_group,
)
from prunekit.errors import ConfigError
from prunekit.graph.layers import layer_named
from prunekit.methods.gram_lasso.entry import EntryOrder, Ordering
from prunekit.methods.gram_lasso.features import WholeOutput
from prunekit.methods.gram_lasso.graph_admm import GraphADMM
from prunekit.methods.gram_lasso.proximal_gradient import FISTA
from prunekit.methods.gram_lasso.regression import Regression, RegressionSolver
from prunekit.methods.gram_lasso.statistics import Statistics, Tables
from prunekit.methods.gram_lasso.structures import Graph, Hierarchy, Linkage, Structure
from prunekit.penalties import L1

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_REDUCE = {"sum": "sum", "max": "amax"}  # of `shared` -> of torch.scatter_reduce
_UNREAD = "is read by a layer that mixes its channels; use for instance criterion=max_cka"


@dataclass(frozen=True)
class GramCriterion(Criterion):
    """Scores the filters of each layer by the similarity tables of its inputs and outputs.

    Channels that a single layer produces are scored by its tables. Channels that several layers
    produce, as in residual streams, have no score and are kept, unless `shared` says how to combine
    the scores of these layers (Liu et al. 2025, appendix, leave this open).
    """

    _: KW_ONLY
    similarity: Annotated[Statistics, "how channels are compared"] = field(
        default_factory=Statistics
    )
    shared: Annotated[
        Literal["sum", "max"] | None,
        "combines layers that produce the same channels; null: these are kept",
    ] = None

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the scores; raises ConfigError if no layer can be scored."""
        data = require_data(data, type(self).__name__)
        layers = scored_layers(model, graph, alone=self.shared is None)
        if not layers:
            raise ConfigError(
                f"criterion={type(self).__name__}: several layers write every channel that can go; "
                "give criterion.shared=sum or max"
            )
        tables = self.similarity.compute(model, graph, data, device, layers)
        by_layer = {
            name: self.filter_scores(tables[name], name)
            for name in track([*tables], "solving", len(tables))
        }
        return _scores_by_group(graph, by_layer, _REDUCE.get(self.shared or "", "sum"))

    @abstractmethod
    def filter_scores(self, tables: Tables, layer: str) -> Tensor:
        """Return a score per output channel of a layer; outputs with zero vectors score lowest."""


@CRITERIA.register("max_cka")
@dataclass(frozen=True)
class MaxCKA(GramCriterion):
    """Scores a filter by the largest similarity of its output with any single input channel.

    With Gram matrices this is centred kernel alignment (CKA). The columns of a plain lasso on the
    same tables enter in this order, so it is the baseline for the structures of sGLP-IB and
    sTLP-IB.
    """

    def filter_scores(self, tables: Tables, layer: str) -> Tensor:
        """Return the largest absolute entry of each column of `cross`."""
        return tables.cross.abs().amax(0)


@CRITERIA.register("sglp")
@dataclass(frozen=True)
class StructuredLasso(GramCriterion):
    """Scores filters by a regression of output similarities on input similarities (eq. 4).

    The regression has a column per filter. Its penalty has the structure of a graph (sGLP-IB) or a
    tree (sTLP-IB) over the filters, which is computed from their similarities.
    """

    structure: Annotated[Structure, "graph or tree over the filters"] = field(default_factory=Graph)
    solver: Annotated[
        RegressionSolver, "must fit the structure; published: SmoothingProximalGradient"
    ] = field(default_factory=GraphADMM)
    order: Annotated[Ordering, "how coefficients become scores"] = field(default_factory=EntryOrder)

    def filter_scores(self, tables: Tables, layer: str) -> Tensor:
        """Return the scores that `order` computes from the solutions."""
        penalty_at = self.structure.penalty(tables.similarity)
        self.solver.check(penalty_at(1.0))
        problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
        return self.order.scores(problem, penalty_at, self.solver, layer)


@CRITERIA.register("stlp")
def tree_lasso(structure: Structure | None = None) -> StructuredLasso:
    """Return sTLP-IB: a group is the entries of one row that a dendrogram node joins."""
    return StructuredLasso(structure=structure or Hierarchy(), solver=FISTA())


@CRITERIA.register("stlp_block")
def block_tree_lasso() -> StructuredLasso:
    """Return the other reading of sTLP-IB: groups are whole columns."""
    return tree_lasso(Hierarchy(blocks=True))


@CRITERIA.register("stlp_mixed")
def mixed_tree_lasso() -> StructuredLasso:
    """Return sTLP-IB with a full l1 part and little weight on the tree; ours."""
    return tree_lasso(Hierarchy(mix=0.05))


@CRITERIA.register("representatives")
@dataclass(frozen=True)
class Representatives(GramCriterion):
    """Keeps one filter of every cluster; ours.

    Clusters are those of a dendrogram over output similarities. When two clusters merge, the one
    whose best filter has the smaller `MaxCKA` score loses that filter, whose score is the height of
    the merge. The n best filters therefore come from n different clusters.
    """

    linkage: Linkage = "average"

    def filter_scores(self, tables: Tables, layer: str) -> Tensor:
        """Return heights of the dendrogram; the best filter scores above all of them."""
        quality = tables.cross.abs().amax(0)
        scores = merge_heights(tables.similarity, quality, self.linkage)
        return torch.where(tables.zero_outputs, torch.zeros_like(scores), scores)


def merge_heights(similarity: Tensor, quality: Tensor, method: str) -> Tensor:
    """Return the height at which each item stops being the best of its cluster, above 0."""
    from scipy.cluster.hierarchy import linkage  # imported late: takes half a second
    from scipy.spatial.distance import squareform

    count = len(quality)
    scores = torch.full((count,), torch.inf, dtype=torch.float64)
    if count == 1:
        return torch.ones_like(scores)
    best = list(range(count))
    distance = (1 - similarity).clamp_min(0).double().fill_diagonal_(0)
    merges = linkage(squareform(distance.numpy(), checks=False), method)
    for first, second, height, _ in merges:
        pair = sorted((best[int(first)], best[int(second)]), key=lambda item: float(quality[item]))
        scores[pair[0]] = height
        best.append(pair[1])
    return scores.clamp_max(2 * float(merges[-1][2]) + 1)


@CRITERIA.register("apib")
@dataclass(frozen=True)
class APIB(Criterion):
    """Scores channels by a lasso on the similarity of the layer that reads them.

    This is automatic pruning by an information bottleneck, the predecessor of sGLP-IB: the whole
    output is one response, and input channels with a zero coefficient are removed. The released
    code bisects one strength for all layers; here the selection decides widths, so that methods are
    compared at equal widths. A unit that several layers read has the best of its scores.
    """

    _: KW_ONLY
    similarity: Annotated[Statistics, "how channels are compared"] = field(
        default_factory=Statistics
    )
    solver: Annotated[RegressionSolver, "solver of the lasso"] = field(default_factory=FISTA)
    order: Annotated[EntryOrder, "how coefficients become scores"] = field(
        default_factory=EntryOrder
    )

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the scores of groups that a single layer produces, as `GramCriterion` does."""
        data = require_data(data, "APIB")
        scorable = _units_of(graph, scored_layers(model, graph))
        readers = [name for name in graph.uses if _mixes(model, graph, name, scorable)]
        statistics = replace(self.similarity, responses=WholeOutput())
        tables = statistics.compute(model, graph, data, device, readers)
        total = torch.zeros(graph.count, dtype=torch.float64)
        scored = torch.zeros(graph.count, dtype=torch.bool)
        for name in track([*tables], "solving", len(tables)):
            units = tables[name].input_units
            total.scatter_reduce_(0, units, self._input_scores(tables[name]), "amax")
            scored[units] = True
        scored[0] = False  # unit 0 is frozen
        return scores_of_complete_groups(graph, total, scored & scorable, _UNREAD)

    def _input_scores(self, tables: Tables) -> Tensor:
        problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
        return self.order.row_scores(problem, L1, self.solver)


def scored_layers(model: nn.Module, graph: ChannelGraph, alone: bool = True) -> list[str]:
    """Return the names of the layers whose filters are removable units, in forward order.

    With `alone`, only layers whose groups have no other producer count. A depthwise convolution is
    no producer: it passes channels on.
    """
    names: set[str] = set()
    for group in graph.groups:
        producers = [name for name in group.producers if _produces(model, name)]
        if len(producers) == 1 or not alone:
            names |= set(producers)
    return [name for name in graph.outs if name in names]


def _produces(model: nn.Module, name: str) -> bool:
    layer = layer_named(model, name)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    return not 1 < getattr(layer, "groups", 1) == layer.in_channels


def _units_of(graph: ChannelGraph, layers: Sequence[str]) -> Tensor:
    """Return a mask over unit ids of the output channels of these layers."""
    mask = torch.zeros(graph.count, dtype=torch.bool)
    for name in layers:
        mask[graph.outs[name].cpu()] = True
    return mask


def _mixes(model: nn.Module, graph: ChannelGraph, name: str, units: Tensor) -> bool:
    """Return whether a layer reads any of these units (a mask) and mixes its input channels."""
    layer = model.get_submodule(name)
    mixes = isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1
    return mixes and bool(units[graph.ins[name].cpu()].any())


def _scores_by_group(graph: ChannelGraph, by_layer: Mapping[str, Tensor], reduce: str) -> Scores:
    """Combine the scores of layers to those of units; groups with unscored units are left out."""
    total = torch.zeros(graph.count, dtype=torch.float64)
    for name, values in by_layer.items():
        units = graph.outs[name].cpu()
        total.scatter_reduce_(0, units, values.double().cpu(), reduce)
    scored = _units_of(graph, [*by_layer])
    names = {group.name for group in graph.groups if bool(scored[group.units.cpu()].all())}
    return {name: score for name, score in split_by_group(graph, total).items() if name in names}
