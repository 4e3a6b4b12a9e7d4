"""Selections by a total: a share of all units, of the multiply-adds, of the parameters."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from torch import Tensor

from prunekit.schema import SomeShare
from prunekit.selection.base import SELECTIONS, Scored, Selected
from prunekit.selection.normalise import MeanNorm, Normalise, relative_ranks
from prunekit.selection.ranking import Kept, Limit, Ranked, Ranking, budget_limit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunekit.graph import ChannelMask
    from prunekit.measure import CostModel


@SELECTIONS.register("global")
@dataclass(frozen=True)
class Global(Ranked):
    """Keeps a share of all scored units, to the nearest count, by one threshold over all groups."""

    keep: Annotated[SomeShare, "share of all scored units that stays"] = 0.5

    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        units = ranking.pool.units

        def kept(removed: Tensor) -> int:
            return int((~removed[units]).sum())

        budget = int(self.keep * len(units) + 0.5)
        return (Limit("channels", "keep", self.keep, kept, budget, len(units)),)


@dataclass(frozen=True)
class Budget(Ranked):
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
