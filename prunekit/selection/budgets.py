"""Selections by a total: a share of all units, of the multiply-adds, of the parameters."""

from __future__ import annotations

import copy
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.measure import Compared, LatencyTest, TimedCost
from prunekit.schema import Positive, SomeShare
from prunekit.selection.base import SELECTIONS, BudgetResult, Masks, Scored, Selected
from prunekit.selection.candidates import ResultFactory
from prunekit.selection.ranking import (
    Kept,
    Limit,
    MeanNorm,
    Normalise,
    RankedSelection,
    Ranking,
    budget_limit,
    relative_ranks,
)
from prunekit.surgery import Narrow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunekit.graph import ChannelGraph, ChannelMask
    from prunekit.measure import CostModel


@SELECTIONS.register("global")
@dataclass(frozen=True)
class Global(RankedSelection):
    """Keeps a share of all scored units, to the nearest count, by one threshold over all groups."""

    keep: Annotated[SomeShare, "share of all scored units that stays"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        units = ranking.pool.units

        def kept(removed: Tensor) -> int:
            return int((~removed[units]).sum())

        budget = int(self.keep * len(units) + 0.5)
        return (Limit("channels", "keep", self.keep, kept, budget, len(units)),)


@dataclass(frozen=True)
class Budget(RankedSelection):
    """The largest network within a budget.

    In the scope `local` the same share of every group stays, and only the order within a group
    counts. In the scope `global` one threshold cuts the scores of all groups, which `normalise`
    scales: by their scale alone, whole layers would go. `auto` divides each group by its mean,
    unless the scores are made to be compared between groups; None never does.
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
        """In the local scope, places within the group stand for the scores."""
        if self.scope == "global":
            return super()._ranking(scored)
        return Ranking(self._pool(replace(scored, scores=relative_ranks(scored.scores))))

    def _answer(
        self, scored: Scored, ranking: Ranking, limits: Sequence[Limit], keep: ChannelMask
    ) -> Selected:
        """Also whether scores were scaled that compare as they are."""
        selected = super()._answer(scored, ranking, limits, keep)
        if self.scope == "local" or self._scale(scored) is None or not scored.comparable:
            return selected
        note = (
            "these scores compare between layers as they are, and selection.normalise scaled them "
            "by layer; selection.normalise=auto leaves them as they are"
        )
        return replace(selected, notes=(*selected.notes, note))

    def _emptied(self, scored: Scored, ranking: Ranking, keep: ChannelMask) -> tuple[str, ...]:
        """None in the local scope: a share of a narrow group may be less than a unit."""
        return () if self.scope == "local" else super()._emptied(scored, ranking, keep)


@SELECTIONS.register("macs")
@dataclass(frozen=True)
class MacsTarget(Budget):
    """The largest network within a budget of multiply-adds.

    `keep` is a share of the full network's in (0, 1], or a whole number above 1: at most so many.
    """

    keep: Annotated[Kept, "multiply-adds that stay"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (budget_limit("MACs", "keep", self.keep, cost.macs),)


@SELECTIONS.register("params")
@dataclass(frozen=True)
class ParamsTarget(Budget):
    """The largest network within a budget of parameters; `keep` as for MacsTarget."""

    keep: Annotated[Kept, "parameters that stay"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (budget_limit("parameters", "keep", self.keep, cost.params),)


@SELECTIONS.register("budgets")
@dataclass(frozen=True)
class Budgets(Budget):
    """The largest network that is within both a budget of MACs and one of parameters."""

    macs: Annotated[Kept, "multiply-adds that stay"] = 0.5
    params: Annotated[Kept, "parameters that stay"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (
            budget_limit("MACs", "macs", self.macs, cost.macs),
            budget_limit("parameters", "params", self.params, cost.params),
        )


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

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        scored = replace(scored, cost=scored.cost.timed(self.timing))
        ranking, limits = self._ranking(scored), self._limits(None, scored.cost)
        masks = ranking.masks(self._search(scored, ranking, limits[0]))
        return masks, lambda keep: self._answer(scored, ranking, limits, keep)

    def _answer(
        self, scored: Scored, ranking: Ranking, limits: tuple[Limit, ...], keep: ChannelMask
    ) -> Selected:
        """Also what was predicted and measured, where this network was measured."""
        selected, cost = super()._answer(scored, ranking, limits, keep), scored.cost
        found = cost.compared(keep.removed)
        if found is None:
            return selected
        share = cost.latency(keep.removed) / cost.latency()
        note = (
            f"latency: {found.narrow_ms:.4g} of {found.dense_ms:.4g} ms measured "
            f"({found.share:.3f} is kept), {share:.3f} predicted by the table of layers"
        )
        budgets = (self._measured_result(selected.budgets[0], found),)
        return replace(selected, budgets=budgets, notes=(*selected.notes, note))

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
            if abs(tried[count] / limit.requested - 1) <= _NEAR:
                break
            factor = tried[count] / limit.evaluate(removed).achieved
        return min(tried, key=lambda count: abs(tried[count] - limit.requested))

    def _limits(self, ranking: Ranking | None, cost: CostModel) -> tuple[Limit, ...]:
        """The limit on what the table predicts."""
        if self.keep is None:
            per, asked, name, key = 1.0, self.milliseconds, "milliseconds", "milliseconds"
        else:
            per, asked, name, key = cost.latency(), self.keep, "latency", "keep"
        return (Limit(name, key, asked, cost.latency, asked * per, per),)

    def _measured_result(self, result: BudgetResult, found: Compared) -> BudgetResult:
        reached = self._reached(found)
        return replace(
            result,
            achieved=reached,
            satisfied=reached <= (1 + _MET) * result.requested,
            predicted=result.achieved,
        )

    def _reached(self, found: Compared) -> float:
        return found.narrow_ms if self.keep is None else found.share


def _scaled(limit: Limit, factor: float) -> Limit:
    """The limit for a table whose predictions are off by a factor."""
    return replace(limit, cost_fn=lambda removed: factor * limit.cost_fn(removed))


def _measured(graph: ChannelGraph, removed: Tensor, cost: TimedCost) -> Compared:
    """The network that is left, timed in turns with the dense one."""
    narrow = copy.deepcopy(cost.model)
    Narrow.of(graph, removed).apply(narrow)
    return cost.compare(removed, narrow)


@SELECTIONS.register("latency")
def latency(keep: float = 0.6) -> LatencyTarget:
    """At most this share of the dense network's latency."""
    return LatencyTarget(keep)
