"""Selections by a total: a share of all units, of the multiply-adds, of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from prunekit.checks import choice, number
from prunekit.selection.base import Masks
from prunekit.selection.normalise import MeanNorm, Normalise, relative_ranks
from prunekit.selection.ranking import Limit, Ranked, Ranking, budget_limit, check_budget

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel


@dataclass(frozen=True)
class Global(Ranked):
    """Keeps a share of all scored units, to the nearest count, by one threshold over all groups."""

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number("selection.keep", self.keep, above=0, at_most=1)

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        units = ranking.pool.units

        def kept(drop: Tensor) -> int:
            return int((~drop[units]).sum())

        budget = int(self.keep * len(units) + 0.5)
        return (Limit("channels", "keep", self.keep, kept, budget, len(units)),)


@dataclass(frozen=True)
class Budget(Ranked):
    """The largest network within a budget.

    In the scope `global` one threshold cuts the scores of all groups, each divided by their mean
    unless `normalise` says otherwise: by their scale alone, whole layers would go. In the scope
    `local` the same share of every group stays, and only the order within a group counts.
    """

    _: KW_ONLY
    normalise: Normalise | None = field(default_factory=MeanNorm)
    scope: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("selection.scope", self.scope, ("global", "local"))

    def collapsed(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph
    ) -> tuple[str, ...]:
        """None in the local scope: a share of a narrow group may be less than a unit."""
        return () if self.scope == "local" else super().collapsed(masks, scores, graph)

    def ranking(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> Ranking:
        """In the local scope, places within the group stand for the scores."""
        return super().ranking(relative_ranks(scores) if self.scope == "local" else scores, graph)


@dataclass(frozen=True)
class MacsTarget(Budget):
    """The largest network within a budget of multiply-adds.

    `keep` is a share of the full network's in (0, 1], or a whole number above 1: at most so many.
    """

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("keep", self.keep)

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (budget_limit("MACs", "keep", self.keep, cost.macs),)


@dataclass(frozen=True)
class ParamsTarget(Budget):
    """The largest network within a budget of parameters; `keep` as for MacsTarget."""

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("keep", self.keep)

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (budget_limit("parameters", "keep", self.keep, cost.params),)


@dataclass(frozen=True)
class Budgets(Budget):
    """The largest network that is within both a budget of MACs and one of parameters."""

    macs: float
    params: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_budget("macs", self.macs)
        check_budget("params", self.params)

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        return (
            budget_limit("MACs", "macs", self.macs, cost.macs),
            budget_limit("parameters", "params", self.params, cost.params),
        )
