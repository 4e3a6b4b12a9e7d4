"""Criteria that read weights only: random, filter norms, batch-norm scales, FPGM and LAMP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn

from prunekit.criteria.base import (
    CRITERIA,
    Criterion,
    Scores,
    scores_of_complete_groups,
    sum_by_unit,
)
from prunekit.graph.layers import TRANSPOSED, layer_named
from prunekit.graph.table import layer_operation
from prunekit.schema import Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_CHUNK = 2**17  # entries that are converted to double at a time
_NO_FILTERS = "has filters of its own; use for instance criterion=bn_scale"
_NO_SCALES = "has a norm layer that scales all of its channels; use for instance criterion=l1_norm"


@CRITERIA.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Scores that are uniform in [0, 1): the baseline for every other criterion."""

    seed: Annotated[Whole, "seed of the scores"] = 0

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Draw the scores, which only depend on the seed and the groups."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            group.name: torch.rand(len(group.units), generator=generator, dtype=torch.float64)
            for group in graph.groups
        }


@CRITERIA.register("l1_norm")
@dataclass(frozen=True)
class L1Norm(Criterion):
    """The sum of absolute weights of a unit's filters, over all layers that produce it.

    Biases do not count (Li et al. 2017).
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the sums of the 1-norms of a unit's filters."""
        return sum_filter_values(graph, filter_norms(model, graph, 1))


@CRITERIA.register("l2_norm")
@dataclass(frozen=True)
class L2Norm(Criterion):
    """The Euclidean norm of a unit's filters, over all layers that produce it, without biases."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the square roots of the summed squares of a unit's filters."""
        squares = sum_filter_values(graph, _squared_norms(model, graph))
        return {name: score.sqrt() for name, score in squares.items()}


@CRITERIA.register("bn_scale")
@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """The absolute batch-norm scale of a unit (Liu et al. 2017, network slimming).

    A unit with several norm layers, such as a residual channel, gets the mean of their scales, so
    that it compares with units that have one.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the mean scales of the groups whose units all have a norm layer.

        Raises ConfigError if there is no such group.
        """
        scales = _scales(model, graph)
        counts = sum_by_unit(graph, {name: torch.ones_like(s) for name, s in scales.items()})
        mean = sum_by_unit(graph, scales) / counts.clamp_min(1)
        return scores_of_complete_groups(graph, mean, counts, _NO_SCALES)


@CRITERIA.register("fpgm")
@dataclass(frozen=True)
class FPGM(Criterion):
    """The sum of distances to the other filters of the layer (He et al. 2019, eq. 6).

    A filter near the geometric median of its layer is the easiest to replace by the others. For a
    unit that several layers produce the sums are added.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the summed Euclidean distances of filters, without biases."""
        doubles = ((name, rows.double()) for name, rows in filters(model, graph))
        distances = {name: torch.cdist(rows, rows).sum(1) for name, rows in doubles}
        return sum_filter_values(graph, distances)


@CRITERIA.register("lamp")
@dataclass(frozen=True)
class LAMP(Criterion):
    """The squared norm of a unit, divided by that of all units of its group that are no smaller.

    Lee et al. 2021, eq. 5, define it for single weights; here it is for whole units. The best unit
    of a group scores 1. Scores compare between layers, so selections should not normalise them.
    """

    comparable: ClassVar[bool] = True

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the shares; squares are summed over the layers that produce a unit, no biases."""
        squares = sum_filter_values(graph, _squared_norms(model, graph))
        return {name: _share_of_larger(score) for name, score in squares.items()}


def _share_of_larger(squares: Tensor) -> Tensor:
    """Divide every entry by the sum of the entries that are no smaller; zeros stay zeros."""
    ascending, _ = squares.sort()
    tails = ascending.flip(0).cumsum(0).flip(0)  # sums from an entry to the largest
    first = torch.searchsorted(ascending, squares)  # equal entries are all counted
    return squares / tails[first].clamp_min(torch.finfo(squares.dtype).tiny)


def sum_filter_values(graph: ChannelGraph, values: Mapping[str, Tensor]) -> Scores:
    """Sum values of filters by unit, for the groups whose units all have filters.

    Channels that come from a channel selection have none.
    """
    counts = sum_by_unit(graph, {name: torch.ones_like(value) for name, value in values.items()})
    return scores_of_complete_groups(graph, sum_by_unit(graph, values), counts, _NO_FILTERS)


def filters(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weights of every producer, (outputs, weights of one filter)."""
    for name in dict.fromkeys(name for group in graph.groups for name in group.producers):
        layer = layer_named(model, name)
        assert isinstance(layer.weight, Tensor)
        yield name, filter_rows(layer, layer.weight.detach())


def filter_norms(model: nn.Module, graph: ChannelGraph, p: float) -> dict[str, Tensor]:
    """Return the p-norm of every filter of every producer, in double precision."""
    return {name: _row_norms(rows, p) for name, rows in filters(model, graph)}


def _squared_norms(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    return {name: norm.square() for name, norm in filter_norms(model, graph, 2).items()}


def _row_norms(rows: Tensor, p: float) -> Tensor:
    """Return row norms, computed in chunks, since a wide layer in doubles exceeds the cache."""
    parts = torch.split(rows, max(1, _CHUNK // rows.shape[1]))
    return torch.cat([torch.linalg.vector_norm(part.double(), p, dim=1) for part in parts])


def filter_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """Reshape a tensor like the weights of a convolution or linear layer to one row per output."""
    if isinstance(module, TRANSPOSED):  # (in, out / groups, ...): outputs are in dimension 1
        parts = weight.reshape(module.groups, -1, *weight.shape[1:])
        return parts.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def _scales(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Return the absolute scales of every norm layer that has them."""
    modules = {name: module for name, module in model.named_modules() if name in graph.outs}
    return {
        name: module.weight.detach().double().abs()
        for name, module in modules.items()
        if _scales_channels(module) and module.weight is not None
    }


def _scales_channels(module: nn.Module) -> bool:
    entry = layer_operation(module)
    return entry is not None and entry.normalizes and entry.emits_bias
