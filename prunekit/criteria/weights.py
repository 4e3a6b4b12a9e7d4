"""Criteria that look at weights only: random, filter norms, batch-norm scales."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores, seen_groups, unit_sums
from prunekit.graph.layers import TRANSPOSED, layer_named
from prunekit.graph.table import of_layer
from prunekit.schema import Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_ENTRIES = 2**17
_NO_FILTERS = "has filters of its own; use for instance criterion=bn_scale"
_NO_SCALES = "has a norm layer that scales all of its channels; use for instance criterion=l1_norm"


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Scores without meaning, uniform in [0, 1): the baseline every criterion has to beat."""

    seed: Annotated[Whole, "seed of the scores"] = 0

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """The same seed gives the same scores, whatever the weights are."""
        source = torch.Generator().manual_seed(self.seed)
        return {
            group.name: torch.rand(len(group.units), generator=source, dtype=torch.float64)
            for group in graph.groups
        }


@CRITERIA.register("l1_norm")
@dataclass(frozen=True)
class L1Norm(Criterion):
    """The sum of absolute weights of a unit's filters, over all layers that produce it."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Biases do not count (Li et al. 2017)."""
        return by_filters(graph, filter_norms(model, graph, 1))


@CRITERIA.register("l2_norm")
@dataclass(frozen=True)
class L2Norm(Criterion):
    """The Euclidean norm of a unit's filters, over all layers that produce it."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Biases do not count."""
        norms = filter_norms(model, graph, 2)
        squares = {name: norm.square() for name, norm in norms.items()}
        return {name: sums.sqrt() for name, sums in by_filters(graph, squares).items()}


@CRITERIA.register("bn_scale")
@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """The absolute batch-norm scale of a unit (Liu et al. 2017, network slimming).

    A unit that passes several norm layers, as residual channels do, gets their mean, so that it
    stays comparable with units that pass one.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups with a unit that no norm layer scales have no score; ConfigError if none has."""
        scales = _scales(model, graph)
        seen = unit_sums(graph, {name: torch.ones_like(scale) for name, scale in scales.items()})
        mean = unit_sums(graph, scales) / seen.clamp_min(1)
        return seen_groups(graph, mean, seen, _NO_SCALES)


def by_filters(graph: ChannelGraph, values: Mapping[str, Tensor]) -> Scores:
    """Sums of values of filters per unit; channels behind a selection have none, and no score."""
    seen = unit_sums(graph, {name: torch.ones_like(value) for name, value in values.items()})
    return seen_groups(graph, unit_sums(graph, values), seen, _NO_FILTERS)


def filters(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, Tensor]]:
    """Name and weights of every producer, one row per output channel."""
    for name in dict.fromkeys(name for group in graph.groups for name in group.producers):
        yield name, filter_rows(layer_named(model, name))


def filter_norms(model: nn.Module, graph: ChannelGraph, p: float) -> dict[str, Tensor]:
    """The p-norm of every filter of every producer, in double precision."""
    return {name: _norms(rows, p) for name, rows in filters(model, graph)}


def _norms(rows: Tensor, p: float) -> Tensor:
    """Row norms, a few rows at a time: a wide layer in doubles would leave the cache."""
    parts = rows.split(max(1, _ENTRIES // rows.shape[1]))
    return torch.cat([torch.linalg.vector_norm(part.double(), p, dim=1) for part in parts])


def filter_rows(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weights of a convolution or linear layer, one row per output.

    Another tensor of their shape may stand in for the weights.
    """
    weight = (module.weight if weight is None else weight).detach()
    if isinstance(module, TRANSPOSED):  # (in, out / groups, ...): outputs lie in dimension 1
        parts = weight.reshape(module.groups, -1, *weight.shape[1:])
        return parts.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def _scales(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """The absolute scales of every norm layer that has them."""
    modules = {name: module for name, module in model.named_modules() if name in graph.outs}
    return {
        name: module.weight.detach().double().abs()
        for name, module in modules.items()
        if _scales_channels(module) and module.weight is not None
    }


def _scales_channels(module: nn.Module) -> bool:
    entry = of_layer(module)
    return entry is not None and entry.norm and entry.shifts


@CRITERIA.register("fpgm")
@dataclass(frozen=True)
class FPGM(Criterion):
    """The sum of distances to the other filters of the layer (He et al. 2019, eq. 6).

    A filter near the geometric median of its layer is the easiest to make up for. Over all layers
    that produce a unit the sums are added.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Euclidean distances of filters without their biases."""
        rows = ((name, found.double()) for name, found in filters(model, graph))
        distances = {name: torch.cdist(found, found).sum(1) for name, found in rows}
        return by_filters(graph, distances)


@CRITERIA.register("lamp")
@dataclass(frozen=True)
class LAMP(Criterion):
    """The squared norm of a unit over that of all units of its group that are no smaller.

    Lee et al. 2021, eq. 5, made for single weights, here for whole units; a group's best unit
    scores 1. Made to be compared between layers as it is: selections should not normalise it.
    """

    comparable: ClassVar[bool] = True

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Squares of the filters of all layers that produce a unit are added; no biases."""
        norms = filter_norms(model, graph, 2)
        squares = {name: norm.square() for name, norm in norms.items()}
        scores = by_filters(graph, squares)
        return {name: _share_of_larger(score) for name, score in scores.items()}


def _share_of_larger(squares: Tensor) -> Tensor:
    """Every entry over the sum of the entries that are no smaller; 0 where all are zero."""
    ordered, _ = squares.sort()
    tails = ordered.flip(0).cumsum(0).flip(0)  # sums from an entry to the largest
    first = torch.searchsorted(ordered, squares)  # of equal entries all count
    return squares / tails[first].clamp_min(torch.finfo(squares.dtype).tiny)
