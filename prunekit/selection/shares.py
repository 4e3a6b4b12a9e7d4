"""Selections that decide group by group: zeros go, or a share stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.checks import number
from prunekit.errors import ConfigError, listed
from prunekit.selection.base import Masks
from prunekit.selection.patterns import assigned
from prunekit.selection.pool import FindsWidths

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel


@dataclass(frozen=True)
class Zeros(FindsWidths):
    """Drops the units whose score is exactly zero, as solvers with a proximal map leave them.

    Of a group that is all zero the first units stay in place of the best. With `round_to` some
    zeros stay, so that nothing else goes.
    """

    def _masks(self, scores: dict[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        pool = self.pool({name: score.abs() for name, score in scores.items()}, graph)
        return pool.masks(pool.up(pool.count((pool.scores != 0) | pool.stays)))


@dataclass(frozen=True)
class PerLayer(FindsWidths):
    """Keeps the same share of every group, rounded to the nearest count.

    `layers` gives other shares to groups with a layer that a pattern matches, the first match
    counts: `{"layer1.*": 0.8}`.
    """

    keep: float
    layers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        number("selection.keep", self.keep, above=0, at_most=1)
        if not isinstance(self.layers, Mapping):
            raise ConfigError(
                f"selection.layers={self.layers!r} does not map patterns to shares; "
                "give for instance {layer1.*: 0.8}"
            )
        for pattern, kept in self.layers.items():
            number(f"selection.layers.{pattern}", kept, above=0, at_most=1)

    def notes(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[str, ...]:
        """Also the groups whose share is less than the least they keep."""
        pool = self.pool(self.open(scores, graph), graph)
        below = (self._asked(pool.names, pool.widths, graph) < pool.least).tolist()
        names = [name for name, low in zip(pool.names, below, strict=True) if low]
        who = "every group keeps" if len(names) == len(below) else f"{listed(names, 4)} keep"
        notes = super().notes(masks, scores, graph, cost)
        return (*notes, f"{who} the least width: the share is below it") if names else notes

    def _masks(self, scores: dict[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        pool = self.pool(scores, graph)
        return pool.masks(self._asked(pool.names, pool.widths, graph))

    def _asked(self, names: list[str], widths: Tensor, graph: ChannelGraph) -> Tensor:
        """How many units every group should have; halves go up."""
        other = assigned(graph, self.layers)
        keep = torch.tensor([other.get(name, self.keep) for name in names], dtype=torch.float64)
        return (keep * widths + 0.5).floor().long()
