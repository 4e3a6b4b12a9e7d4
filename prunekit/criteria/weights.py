"""Criteria that look at weights only: random, filter norms, batch-norm scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.checks import integer
from prunekit.criteria.base import Criterion, Scores, by_group, seen_groups, unit_sums
from prunekit.graph.layers import TRANSPOSED, layer_named

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_NO_SCALES = "has a norm layer that scales all of its channels; use for instance criterion=l1_norm"


@dataclass(frozen=True)
class Random(Criterion):
    """Scores without meaning, uniform in [0, 1): the baseline every criterion has to beat."""

    seed: int = 0

    def __post_init__(self) -> None:
        integer("seed", self.seed, at_least=0)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """The same seed gives the same scores, whatever the weights are."""
        source = torch.Generator().manual_seed(self.seed)
        return {
            group.name: torch.rand(len(group.units), generator=source, dtype=torch.float64)
            for group in graph.groups
        }


@dataclass(frozen=True)
class L1Norm(Criterion):
    """The sum of absolute weights of a unit's filters, over all layers that produce it."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Biases do not count (Li et al. 2017)."""
        norms = {name: rows.abs().sum(1) for name, rows in filters(model, graph).items()}
        return by_group(graph, unit_sums(graph, norms))


@dataclass(frozen=True)
class L2Norm(Criterion):
    """The Euclidean norm of a unit's filters, over all layers that produce it."""

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Biases do not count."""
        squares = {name: rows.square().sum(1) for name, rows in filters(model, graph).items()}
        return by_group(graph, unit_sums(graph, squares).sqrt())


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


def filters(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """The weights of every producer, one row per output channel."""
    names = dict.fromkeys(name for group in graph.groups for name in group.producers)
    return {name: filter_rows(layer_named(model, name)) for name in names}


def filter_rows(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """The weights of a convolution or linear layer in double precision, one row per output.

    Another tensor of their shape may stand in for the weights.
    """
    weight = (module.weight if weight is None else weight).detach().double()
    if isinstance(module, TRANSPOSED):  # (in, out / groups, ...): outputs lie in dimension 1
        parts = weight.reshape(module.groups, -1, *weight.shape[1:])
        return parts.transpose(1, 2).flatten(0, 1).flatten(1)
    return weight.flatten(1)


def _scales(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """The absolute scales of every norm layer that has them."""
    norms = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
    modules = {name: module for name, module in model.named_modules() if name in graph.outs}
    return {
        name: module.weight.detach().double().abs()
        for name, module in modules.items()
        if isinstance(module, norms) and module.weight is not None
    }
