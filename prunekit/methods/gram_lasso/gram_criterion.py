"""Criteria that score the filters of a layer by its similarity tables, a layer at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria.activations import training_data
from prunekit.criteria.base import CRITERIA, Criterion, Scores, by_group
from prunekit.errors import ConfigError
from prunekit.graph.layers import layer_named
from prunekit.methods.gram_lasso.gram_tables import Tables
from prunekit.methods.gram_lasso.statistics import Statistics

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_REDUCE = {"sum": "sum", "max": "amax"}


@dataclass(frozen=True)
class OnTables(Criterion):
    """Scores the filters of every layer by what its input and output channels have in common.

    Channels that one layer makes are scored by its tables. Those that several layers write, as the
    streams of residual stages, have no score and stay, unless `shared` says how their layers'
    scores become one: `sum` or `max` (Liu et al. 2025, appendix, leave this open).
    """

    _: KW_ONLY
    similarity: Annotated[Statistics, "how channels are compared"] = field(
        default_factory=Statistics
    )
    shared: Annotated[
        Literal["sum", "max"] | None, "streams go by all layers that write them; null: they stay"
    ] = None

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Larger means keep; ConfigError where no group has a layer of its own."""
        data = training_data(data, type(self).__name__)
        layers = scored_layers(model, graph, alone=self.shared is None)
        if not layers:
            raise ConfigError(
                f"criterion={type(self).__name__}: several layers write every channel that can go; "
                "give criterion.shared=sum or max"
            )
        tables = self.similarity.of(model, graph, data, device, layers)
        worth = {}
        for name in track([*tables], "solving", len(tables)):
            worth[name] = self.worth(tables[name], name)
        return _united(graph, worth, _REDUCE.get(self.shared or "", "sum"))

    @abstractmethod
    def worth(self, tables: Tables, layer: str) -> Tensor:
        """One score per output channel of a layer; dead ones below all others."""


@CRITERIA.register("max_cka")
@dataclass(frozen=True)
class MaxCKA(OnTables):
    """The largest similarity of a filter's output with any single input channel.

    With unit norms that is centred kernel alignment, and the order in which the columns of a plain
    lasso on the same tables enter: what the structures of sGLP-IB and sTLP-IB add is compared with.
    """

    def worth(self, tables: Tables, layer: str) -> Tensor:
        """The largest absolute entry of each column."""
        return tables.cross.abs().amax(0)


def scored_layers(model: nn.Module, graph: ChannelGraph, alone: bool = True) -> list[str]:
    """The layers whose filters make removable units, in forward order.

    With `alone` those only whose groups no other layer writes. A depthwise convolution hands on
    the channels it gets and writes none.
    """
    found: set[str] = set()
    for group in graph.groups:
        makers = [name for name in group.producers if _makes(model, name)]
        if len(makers) == 1 or not alone:
            found |= set(makers)
    return [name for name in graph.outs if name in found]


def _makes(model: nn.Module, name: str) -> bool:
    layer = layer_named(model, name)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return False
    return not 1 < getattr(layer, "groups", 1) == layer.in_channels


def _united(graph: ChannelGraph, worth: Mapping[str, Tensor], reduce: str) -> Scores:
    """Scores of units from those of the layers that make them; groups without stay out."""
    total = torch.zeros(graph.count, dtype=torch.float64)
    seen = torch.zeros(graph.count, dtype=torch.bool)
    for name, values in worth.items():
        units = graph.outs[name].cpu()
        total.scatter_reduce_(0, units, values.double().cpu(), reduce)
        seen[units] = True
    scored = {g.name for g in graph.groups if bool(seen[g.units.cpu()].all())}
    return {name: score for name, score in by_group(graph, total).items() if name in scored}
