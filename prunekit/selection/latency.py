"""The largest network within a latency: found by a table of layers, verified by measuring it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from prunekit.checks import instance, number
from prunekit.errors import ConfigError
from prunekit.measure import Compared, LatencyTest, TimedCost
from prunekit.selection.base import Aim, Masks, gone
from prunekit.selection.budgets import Budget
from prunekit.selection.ranking import Limit, Ranking
from prunekit.surgery import Narrow

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel
    from prunekit.measure.latency_table import Track

_ROUNDS = 4  # networks that are measured at most
_NEAR = 0.03  # a network so near to what was asked for ends the search
_MET = 0.10  # how far above it a network may be measured and still be what was asked for


@dataclass(frozen=True)
class LatencyTarget(Budget):
    """The largest network within a latency per batch, on the device that scores are taken on.

    Ask for `keep`, a share of the dense network's latency in (0, 1], or for `milliseconds`. A table
    of layer times (`TimedCost`) finds a network; it is measured in turns with the dense one, as
    `timing` says, and where the table was wrong the search is repeated with its predictions
    scaled. Of the networks that were measured the one nearest to what was asked for is chosen.
    """

    keep: float | None = None
    milliseconds: float | None = None
    _: KW_ONLY
    timing: LatencyTest = field(default_factory=LatencyTest)

    def __post_init__(self) -> None:
        super().__post_init__()
        instance("selection.timing", self.timing, LatencyTest)
        if (self.keep is None) == (self.milliseconds is None):
            raise ConfigError(
                f"selection.keep={self.keep} and selection.milliseconds={self.milliseconds}: give "
                "one of them, and null for the other"
            )
        if self.keep is not None:
            number("selection.keep", self.keep, above=0, at_most=1)
        if self.milliseconds is not None:
            number("selection.milliseconds", self.milliseconds, above=0)

    def costs(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Tensor | tuple[Tensor, ...],
        device: str = "cpu",
        track: Track | None = None,
    ) -> TimedCost:
        """A cost model that measures the table when it is first asked for milliseconds.

        ConfigError for a network of several inputs, which is not timed.
        """
        inputs = [example] if isinstance(example, Tensor) else example
        if len(inputs) != 1:
            raise ConfigError(
                f"a budget of latency times networks of one input, this one has {len(inputs)}; "
                "ask for a share of macs"
            )
        return TimedCost(model, graph, inputs[0], self.timing, device, track)

    def aims(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[Aim, ...]:
        """The latency asked for, measured if `choose` has measured this network, and predicted."""
        drop = gone(graph, masks)
        limit, found = self._limit(_timed(cost)), _timed(cost).compared(drop)
        aim = limit.aim(drop)
        if found is None:
            return (aim,)
        reached = self._reached(found)
        met = reached <= (1 + _MET) * aim.asked
        return (replace(aim, reached=reached, met=met, predicted=aim.reached),)

    def notes(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[str, ...]:
        """Also what was predicted and measured."""
        drop = gone(graph, masks)
        found, notes = _timed(cost).compared(drop), super().notes(masks, scores, graph, cost)
        if found is None:
            return notes
        share = cost.latency(drop) / cost.latency()
        return (
            *notes,
            f"latency: {found.narrow_ms:.4g} of {found.dense_ms:.4g} ms measured "
            f"({found.share:.3f} is kept), {share:.3f} predicted by the table of layers",
        )

    def _masks(self, scores: dict[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        ranking, limit, tried = self.ranking(scores, graph), self._limit(_timed(cost)), {}
        factor = 1.0
        for _ in range(_ROUNDS):
            removed = self.removed(ranking, [_scaled(limit, factor)])
            if removed in tried:
                break
            drop = ranking.drop(removed)
            tried[removed] = self._reached(_measured(graph, drop, cost))
            if abs(tried[removed] / limit.asked - 1) <= _NEAR:
                break
            factor = tried[removed] / limit.aim(drop).reached
        return ranking.masks(min(tried, key=lambda n: abs(tried[n] - limit.asked)))

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (self._limit(_timed(cost)),)

    def _limit(self, cost: TimedCost) -> Limit:
        """The limit on what the table predicts."""
        if self.keep is None:
            return Limit(
                "milliseconds", "milliseconds", self.milliseconds, cost.latency, self.milliseconds
            )
        dense = cost.latency()
        return Limit("latency", "keep", self.keep, cost.latency, self.keep * dense, dense)

    def _reached(self, found: Compared) -> float:
        return found.narrow_ms if self.keep is None else found.share


def _scaled(limit: Limit, factor: float) -> Limit:
    """The limit for a table whose predictions are off by a factor."""
    return replace(limit, price=lambda drop: factor * limit.price(drop))


def _measured(graph: ChannelGraph, drop: Tensor, cost: TimedCost) -> Compared:
    """The network that is left, timed in turns with the dense one."""
    narrow = copy.deepcopy(cost.model)
    Narrow.of(graph, drop).apply(narrow)
    return cost.compare(drop, narrow)


def _timed(cost: CostModel) -> TimedCost:
    if not isinstance(cost, TimedCost):
        raise ConfigError(
            "a selection by latency needs a cost model that measures: use its `costs`"
        )
    return cost
