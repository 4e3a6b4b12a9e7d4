"""Units of all groups in one order, and the search for the largest network within limits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.selection.base import Aim, Masks, Scored, Selected
from prunekit.selection.emptied_layers import emptied_notes, first_emptied
from prunekit.selection.normalise import Normalise
from prunekit.selection.pool import CandidateUnits, Describe, FindsWidths
from prunekit.validate import number

if TYPE_CHECKING:
    from prunekit.graph import ChannelMask
    from prunekit.measure import CostModel


class Ranking:
    """All units of a pool from the one that goes first to the last, less those that are protected.

    Lowest score first; of equal scores the later unit goes first. `steps` counts the units that may
    go. The networks that are left are nested, whatever the pool rounds to.
    """

    def __init__(self, pool: CandidateUnits) -> None:
        order = pool.worst_first()
        self.pool = pool
        self._groups = pool.group[order[~pool.stays[order]]]
        self.steps = len(self._groups)

    def counts(self, count: int) -> Tensor:
        """How many units every group keeps when the first `count` units are gone, not rounded."""
        lost = torch.bincount(self._groups[:count], minlength=len(self.pool.widths))
        return self.pool.widths - lost

    def masks(self, count: int) -> Masks:
        """What is kept when the first `count` units are gone."""
        return self.pool.masks(self.counts(count))

    def removed(self, count: int) -> Tensor:
        """What the first `count` units leave, as a mask over unit ids, True = removed."""
        return self.pool.removed(self.counts(count))

    def unprotected(self, removed: Tensor) -> Tensor:
        """What would go with `removed`, were nothing protected: all up to its last unit."""
        order = self.pool.worst_first()
        places = removed[self.pool.units[order]].nonzero().flatten()
        units = torch.zeros(len(order), dtype=torch.bool)
        units[order[: int(places.max()) + 1 if len(places) else 0]] = True
        return self.pool.without(units)


@dataclass(frozen=True)
class Limit:
    """At most `asked` of something, in units of `per`: of the full network's amount for a share.

    `price` gives how much of it a network has, from a mask over unit ids (True: removed); it must
    not rise when more goes. `setting` is where it was asked for.
    """

    name: str
    setting: str
    asked: float
    price: Callable[[Tensor], float]
    budget: float
    per: float = 1

    def aim(self, removed: Tensor) -> Aim:
        """What was asked for beside what a network has."""
        price = self.price(removed)
        return Aim(self.name, self.asked, price / self.per, price <= self.budget)


def budget_limit(
    name: str, setting: str, kept: float, price: Callable[[Tensor | None], float]
) -> Limit:
    """A limit for a number that is a share up to 1 and an amount above; None: the whole network."""
    per = price(None) if kept <= 1 else 1
    slack = 1 + 1e-12  # a share may be given as a ratio of counts
    return Limit(name, setting, kept, price, kept * per * slack, per)


def fewest(ranking: Ranking, limits: Sequence[Limit]) -> int | None:
    """How few units may go so that all limits are met, by bisection; None: even all are too few."""

    def within(count: int) -> bool:
        removed = ranking.removed(count)
        return all(limit.price(removed) <= limit.budget for limit in limits)

    if not within(ranking.steps):
        return None
    low, high = -1, ranking.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Ranked(FindsWidths):
    """The largest network within limits, of those that lose the lowest-scored units of all groups.

    `on_miss` says what happens when a limit is below what every network keeps: `refuse`, or
    `nearest`, which takes the smallest network.
    """

    _: KW_ONLY
    normalise: Annotated[Normalise | None, "scales scores by group; null: as they are"] = None
    on_miss: Annotated[
        Literal["refuse", "nearest"], "nearest: the smallest network where the budget is too low"
    ] = "refuse"

    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        ranking = self._ranking(scored)
        limits = self._limits(ranking, scored.cost)
        masks = ranking.masks(self._count(ranking, limits))
        return masks, lambda keep: self._answer(scored, ranking, limits, keep)

    def _answer(
        self, scored: Scored, ranking: Ranking, limits: Sequence[Limit], keep: ChannelMask
    ) -> Selected:
        """A pair of asked and reached for every limit, and the layers that only live protected."""
        emptied = self._emptied(scored, ranking, keep)
        return Selected(
            keep=keep,
            aims=tuple(limit.aim(keep.removed) for limit in limits),
            emptied=emptied,
            notes=tuple(emptied_notes(scored.graph, keep, emptied, nearly=scored.scores)),
        )

    def _emptied(self, scored: Scored, ranking: Ranking, keep: ChannelMask) -> tuple[str, ...]:
        """The layers all of whose units come before another one that went."""
        return first_emptied(scored.graph, ranking.unprotected(keep.removed))

    def _ranking(self, scored: Scored) -> Ranking:
        """The units of these groups in the order in which they go."""
        scale = self._scale(scored)
        scores = scale(scored.scores) if scale else scored.scores
        return Ranking(self._pool(replace(scored, scores=scores)))

    def _scale(self, scored: Scored) -> Normalise | None:
        """What the scores of every group are divided by before they are compared."""
        return self.normalise

    def _count(self, ranking: Ranking, limits: Sequence[Limit]) -> int:
        """How many units go; ConfigError where a limit is out of reach and must not be missed."""
        count = fewest(ranking, limits)
        if count is None and self.on_miss == "refuse":
            raise _out_of_reach(ranking, limits)
        return ranking.steps if count is None else count

    @abstractmethod
    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        """What the network must not exceed."""


@dataclass(frozen=True)
class ShareOrCount:
    """A number that is a share of the full network up to 1, and at most so many above."""

    def check(self, name: str, kept: float) -> None:
        """Raise ConfigError where it is neither."""
        number(name, kept, above=0)
        if kept > 1 and kept != int(kept):
            raise ConfigError(
                f"{name}={kept} is neither a share up to 1 nor a whole number; "
                "above 1 it means at most so many"
            )

    def __str__(self) -> str:
        return "a share up to 1, or a whole number"


Kept = Annotated[float, ShareOrCount()]


def _out_of_reach(ranking: Ranking, limits: Sequence[Limit]) -> ConfigError:
    """Names the first limit that the smallest network exceeds, and what can be reached."""
    removed = ranking.removed(ranking.steps)
    limit = next(limit for limit in limits if limit.price(removed) > limit.budget)
    least, full = limit.price(removed) / limit.per, limit.price(ranking.removed(0)) / limit.per
    if limit.per != 1:
        least = ceil(least * 1e4) / 1e4  # what is shown can be asked for
    return ConfigError(
        f"selection.{limit.setting}={limit.asked} cannot be reached: these scores, min_keep and "
        f"round_to leave {least:.10g} to {full:.10g}; ask for that, lower selection.min_keep, or "
        "take the smallest network with selection.on_miss=nearest"
    )
