"""Selections within a budget: of units, multiply-adds, parameters, or latency."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.measure import LatencyComparison, LatencyTest, TimedCost
from prunekit.schema import Positive, SomeShare
from prunekit.selection.base import SELECTIONS, BudgetResult, Masks, Scored, Selected
from prunekit.selection.candidates import ResultFactory
from prunekit.selection.ranking import (
    Amount,
    Limit,
    MeanNorm,
    Normalise,
    RankedSelection,
    Ranking,
    budget_limit,
    macs_limit,
    relative_ranks,
)
from prunekit.surgery import Narrow

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph, ChannelMask
    from prunekit.measure import CostModel

_MAX_MEASUREMENTS = 4  # networks that one search measures
_CLOSE = 0.03  # relative distance from the requested latency that ends the search
_TOLERANCE = 0.10  # relative excess up to which a measured network still meets the request


@SELECTIONS.register("global")
@dataclass(frozen=True)
class Global(RankedSelection):
    """Keeps a share of all scored units, to the nearest count, by one threshold over all groups."""

    keep: Annotated[SomeShare, "share of all scored units that is kept"] = 0.5
    _: KW_ONLY
    normalise: Annotated[Normalise | None, "scales scores by group; null: as they are"] = None

    @property
    def reduction(self) -> str:
        """The share that is below 1, unless the nearest number will do."""
        return f"selection.keep={self.keep}" if self.keep < 1 and self.on_miss == "refuse" else ""

    def _scale(self, scored: Scored) -> Normalise | None:
        return self.normalise

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        units = ranking.pool.units

        def kept(removed: Tensor) -> int:
            return int((~removed[units]).sum())

        maximum = int(self.keep * len(units) + 0.5)
        return (Limit("channels", "keep", self.keep, kept, maximum, len(units)),)


@dataclass(frozen=True)
class Budget(RankedSelection):
    """A selection of the largest network within a budget.

    With the scope `local` the same share of every group is kept, and scores only order the units
    within a group. With the scope `global` one threshold applies to the scores of all groups.
    Groups differ in scale, and unscaled scores may remove whole layers, so `normalise=auto` divides
    each group by its mean, unless the criterion makes scores that compare between groups.
    """

    _: KW_ONLY
    scope: Annotated[
        Literal["local", "global"], "local: the same share of every group; global: one threshold"
    ] = "local"
    normalise: Annotated[
        Normalise | Literal["auto"] | None,
        "global scope: auto divides by a group's mean, unless scores compare; null: never",
    ] = "auto"

    def _scale(self, scored: Scored) -> Normalise | None:
        if isinstance(self.normalise, str):
            return None if scored.comparable else MeanNorm()
        return self.normalise

    def _ranking(self, scored: Scored) -> Ranking:
        if self.scope == "global":
            return super()._ranking(scored)
        return Ranking(self._pool(replace(scored, scores=relative_ranks(scored.scores))))

    def _result(
        self, scored: Scored, ranking: Ranking, limits: Sequence[Limit], keep: ChannelMask
    ) -> Selected:
        """Add a note where scores that compare as they are were scaled."""
        selected = super()._result(scored, ranking, limits, keep)
        if self.scope == "local" or self._scale(scored) is None or not scored.comparable:
            return selected
        note = (
            "these scores compare between layers as they are, and selection.normalise scaled them "
            "by layer; selection.normalise=auto leaves them as they are"
        )
        return replace(selected, notes=(*selected.notes, note))

    def _emptied(self, scored: Scored, ranking: Ranking, keep: ChannelMask) -> tuple[str, ...]:
        """Return nothing in the local scope: a share of a narrow group may be less than a unit."""
        return () if self.scope == "local" else super()._emptied(scored, ranking, keep)


@SELECTIONS.register("macs")
@dataclass(frozen=True)
class MacsTarget(Budget):
    """The largest network within a budget of multiply-adds.

    `keep` is a share of the full network's in (0, 1], or a whole number above 1: at most so many. A
    share is of the layers: products of activations, which no cut changes, are told of.
    """

    keep: Annotated[Amount, "multiply-adds that are kept"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (macs_limit("keep", self.keep, cost),)


@SELECTIONS.register("params")
@dataclass(frozen=True)
class ParamsTarget(Budget):
    """The largest network within a budget of parameters; `keep` as for MacsTarget."""

    keep: Annotated[Amount, "parameters that are kept"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (budget_limit("parameters", "keep", self.keep, cost.params),)


@SELECTIONS.register("budgets")
@dataclass(frozen=True)
class Budgets(Budget):
    """The largest network that is within both a budget of MACs and one of parameters."""

    macs: Annotated[Amount, "multiply-adds that are kept"] = 0.5
    params: Annotated[Amount, "parameters that are kept"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (
            macs_limit("macs", self.macs, cost),
            budget_limit("parameters", "params", self.params, cost.params),
        )


@dataclass(frozen=True)
class LatencyTarget(Budget):
    """The largest network within a latency per batch, on the device that scores the network.

    Give `keep`, a share of the dense network's latency in (0, 1], or `milliseconds`. A table of
    layer times (`TimedCost`) proposes a network, which is then timed in turns with the dense one as
    `timing` says. Where the table was wrong, the search is repeated with scaled predictions. The
    result is the measured network whose latency is nearest to the request.
    """

    keep: Annotated[SomeShare | None, "share of the dense network's latency that is kept"] = None
    milliseconds: Annotated[
        Positive | None, "latency per batch, instead of keep (which is then null)"
    ] = None
    _: KW_ONLY
    timing: Annotated[LatencyTest, "how latency is measured"] = field(default_factory=LatencyTest)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.keep is None) == (self.milliseconds is None):
            raise ConfigError(
                f"keep={self.keep} and milliseconds={self.milliseconds}: give "
                "one of them, and null for the other"
            )

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        cost = scored.cost.timed(self.timing)
        scored = replace(scored, cost=cost)
        ranking, limit = self._ranking(scored), self._limit(cost)
        masks = ranking.masks(self._search(scored.graph, ranking, limit, cost))

        def result(keep: ChannelMask) -> Selected:
            return self._measured(self._result(scored, ranking, [limit], keep), cost)

        return masks, result

    def _measured(self, selected: Selected, cost: TimedCost) -> Selected:
        """Add the measured latency to the result, where this network was measured."""
        removed = selected.keep.removed
        comparison = cost.last_comparison(removed)
        if comparison is None:
            return selected
        share = cost.latency(removed) / cost.latency()
        note = (
            f"latency: {comparison.narrow_ms:.4g} of {comparison.dense_ms:.4g} ms measured "
            f"({comparison.share:.3f} is kept), {share:.3f} predicted by the table of layers"
        )
        budgets = (self._measured_budget(selected.budgets[0], comparison),)
        return replace(selected, budgets=budgets, notes=(*selected.notes, note))

    def _search(self, graph: ChannelGraph, ranking: Ranking, limit: Limit, cost: TimedCost) -> int:
        """Return how many units to remove for the measured latency nearest to the request."""
        measured: dict[int, float] = {}
        factor = 1.0
        for _ in range(_MAX_MEASUREMENTS):
            count = self._count(ranking, [_scaled(limit, factor)])
            if count in measured:
                break
            removed = ranking.removed(count)
            measured[count] = self._achieved(_measure(graph, removed, cost))
            if abs(measured[count] / limit.requested - 1) <= _CLOSE:
                break
            factor = measured[count] / limit.evaluate(removed).achieved
        return min(measured, key=lambda count: abs(measured[count] - limit.requested))

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (self._limit(cost.timed(self.timing)),)

    def _limit(self, cost: TimedCost) -> Limit:
        """Return the limit on the latency that the table predicts."""
        if self.keep is not None:
            dense = cost.latency()
            return Limit("latency", "keep", self.keep, cost.latency, self.keep * dense, dense)
        assert self.milliseconds is not None
        name = "milliseconds"
        return Limit(name, name, self.milliseconds, cost.latency, self.milliseconds)

    def _measured_budget(
        self, predicted: BudgetResult, comparison: LatencyComparison
    ) -> BudgetResult:
        achieved = self._achieved(comparison)
        return replace(
            predicted,
            achieved=achieved,
            satisfied=achieved <= (1 + _TOLERANCE) * predicted.requested,
            predicted=predicted.achieved,
        )

    def _achieved(self, comparison: LatencyComparison) -> float:
        return comparison.narrow_ms if self.keep is None else comparison.share


def _scaled(limit: Limit, factor: float) -> Limit:
    """Return the limit for a table whose predictions are off by a factor."""
    return replace(limit, cost_fn=lambda removed: factor * limit.cost_fn(removed))


def _measure(graph: ChannelGraph, removed: Tensor, cost: TimedCost) -> LatencyComparison:
    """Build the narrow network and time it in turns with the dense one."""
    narrow = copy.deepcopy(cost.model)
    Narrow.of(graph, removed).apply(narrow)
    return cost.compare(removed, narrow)


@SELECTIONS.register("latency")
def latency(keep: float = 0.6) -> LatencyTarget:
    """Return a selection of at most this share of the dense network's latency."""
    return LatencyTarget(keep)
