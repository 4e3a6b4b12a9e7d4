"""The largest network within a latency: found by a table of layers, verified by measuring it."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from prunekit.errors import ConfigError
from prunekit.measure import LatencyComparison, LatencyTest, TimedCost
from prunekit.schema import Positive, SomeShare
from prunekit.selection.base import SELECTIONS, Aim, Masks, Scored, Selected
from prunekit.selection.budgets import Budget
from prunekit.selection.pool import Describe
from prunekit.selection.ranking import Limit, Ranking
from prunekit.surgery import Narrow

if TYPE_CHECKING:
    from torch import Tensor

    from prunekit.graph import ChannelGraph, ChannelMask
    from prunekit.measure import CostModel

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

    keep: Annotated[SomeShare | None, "of the dense network's latency"] = None
    milliseconds: Annotated[Positive | None, "per batch, in place of keep (then null)"] = None
    _: KW_ONLY
    timing: Annotated[LatencyTest, "how latency is measured"] = field(default_factory=LatencyTest)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.milliseconds is None):
            raise ConfigError(
                f"keep={self.keep} and milliseconds={self.milliseconds}: give "
                "one of them, and null for the other"
            )

    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        scored = replace(scored, cost=scored.cost.timed(self.timing))
        ranking, limits = self._ranking(scored), self._limits(None, scored.cost)
        masks = ranking.masks(self._search(scored, ranking, limits[0]))
        return masks, lambda keep: self._answer(scored, ranking, limits, keep)

    def _answer(
        self, scored: Scored, ranking: Ranking, limits: tuple[Limit, ...], keep: ChannelMask
    ) -> Selected:
        """Also what was predicted and measured, where this network was measured."""
        selected, cost = super()._answer(scored, ranking, limits, keep), scored.cost
        found = cost.last_comparison(keep.removed)
        if found is None:
            return selected
        share = cost.latency(keep.removed) / cost.latency()
        note = (
            f"latency: {found.narrow_ms:.4g} of {found.dense_ms:.4g} ms measured "
            f"({found.share:.3f} is kept), {share:.3f} predicted by the table of layers"
        )
        aims = (self._measured_aim(selected.aims[0], found),)
        return replace(selected, aims=aims, notes=(*selected.notes, note))

    def _search(self, scored: Scored, ranking: Ranking, limit: Limit) -> int:
        """How many units go in the measured network that is nearest to what was asked for."""
        tried: dict[int, float] = {}
        factor = 1.0
        for _ in range(_ROUNDS):
            count = self._count(ranking, [_scaled(limit, factor)])
            if count in tried:
                break
            removed = ranking.removed(count)
            tried[count] = self._reached(_measured(scored.graph, removed, scored.cost))
            if abs(tried[count] / limit.asked - 1) <= _NEAR:
                break
            factor = tried[count] / limit.aim(removed).reached
        return min(tried, key=lambda count: abs(tried[count] - limit.asked))

    def _limits(self, ranking: Ranking | None, cost: CostModel) -> tuple[Limit, ...]:
        """The limit on what the table predicts."""
        if self.keep is None:
            per, asked, name, key = 1.0, self.milliseconds, "milliseconds", "milliseconds"
        else:
            per, asked, name, key = cost.latency(), self.keep, "latency", "keep"
        return (Limit(name, key, asked, cost.latency, asked * per, per),)

    def _measured_aim(self, aim: Aim, found: LatencyComparison) -> Aim:
        reached = self._reached(found)
        return replace(
            aim, reached=reached, met=reached <= (1 + _MET) * aim.asked, predicted=aim.reached
        )

    def _reached(self, found: LatencyComparison) -> float:
        return found.narrow_ms if self.keep is None else found.share


def _scaled(limit: Limit, factor: float) -> Limit:
    """The limit for a table whose predictions are off by a factor."""
    return replace(limit, price=lambda removed: factor * limit.price(removed))


def _measured(graph: ChannelGraph, removed: Tensor, cost: TimedCost) -> LatencyComparison:
    """The network that is left, timed in turns with the dense one."""
    narrow = copy.deepcopy(cost.model)
    Narrow.of(graph, removed).apply(narrow)
    return cost.compare(removed, narrow)


@SELECTIONS.register("latency")
def latency(keep: float = 0.6) -> LatencyTarget:
    """At most this share of the dense network's latency."""
    return LatencyTarget(keep)
