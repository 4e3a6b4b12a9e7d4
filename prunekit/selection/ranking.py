"""Units of all groups in one order, and the search for the largest network within limits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.checks import choice, instance, number
from prunekit.errors import ConfigError
from prunekit.selection.base import Aim, Masks, gone
from prunekit.selection.collapse import first_emptied, told
from prunekit.selection.normalise import Normalise
from prunekit.selection.pool import FindsWidths, Pool

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel


class Ranking:
    """All units of a pool from the one that goes first to the last, less those that are protected.

    Lowest score first; of equal scores the later unit goes first. `steps` counts the units that may
    go. The networks that are left are nested, whatever the pool rounds to.
    """

    def __init__(self, pool: Pool) -> None:
        order = pool.worst_first()
        self.pool = pool
        self._groups = pool.group[order[~pool.stays[order]]]
        self.steps = len(self._groups)

    def counts(self, removed: int) -> Tensor:
        """How many units every group keeps when the first `removed` units are gone, not rounded."""
        gone = torch.bincount(self._groups[:removed], minlength=len(self.pool.widths))
        return self.pool.widths - gone

    def masks(self, removed: int) -> Masks:
        """What is kept when the first `removed` units are gone."""
        return self.pool.masks(self.counts(removed))

    def drop(self, removed: int) -> Tensor:
        """The same as a mask over unit ids, True where a unit goes."""
        return self.pool.drop(self.counts(removed))

    def unprotected(self, drop: Tensor) -> Tensor:
        """What would be gone with `drop`, were nothing protected: all up to its last unit."""
        order = self.pool.worst_first()
        gone = drop[self.pool.units[order]].nonzero().flatten()
        units = torch.zeros(len(order), dtype=torch.bool)
        units[order[: int(gone.max()) + 1 if len(gone) else 0]] = True
        return self.pool.gone(units)


@dataclass(frozen=True)
class Limit:
    """At most `asked` of something, in units of `per`: of the full network's amount for a share.

    `price` gives how much of it a network has, from a mask over unit ids (True: gone); it must not
    rise when more goes. `setting` is where it was asked for.
    """

    name: str
    setting: str
    asked: float
    price: Callable[[Tensor], float]
    budget: float
    per: float = 1

    def aim(self, drop: Tensor) -> Aim:
        """What was asked for beside what a network has."""
        price = self.price(drop)
        return Aim(self.name, self.asked, price / self.per, price <= self.budget)


def budget_limit(
    name: str, setting: str, kept: float, price: Callable[[Tensor | None], float]
) -> Limit:
    """A limit for a number that is a share up to 1 and an amount above; None: nothing is gone."""
    per = price(None) if kept <= 1 else 1
    slack = 1 + 1e-12  # a share may be given as a ratio of counts
    return Limit(name, setting, kept, price, kept * per * slack, per)


def fewest(ranking: Ranking, limits: Sequence[Limit]) -> int | None:
    """How few units may go so that all limits are met, by bisection; None: even all are too few."""

    def within(removed: int) -> bool:
        drop = ranking.drop(removed)
        return all(limit.price(drop) <= limit.budget for limit in limits)

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
    normalise: Normalise | None = None
    on_miss: str = "refuse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise is not None:
            instance("selection.normalise", self.normalise, Normalise)
        choice("selection.on_miss", self.on_miss, ("refuse", "nearest"))

    def aims(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[Aim, ...]:
        """What was asked for and what there is, a pair for every limit."""
        drop = gone(graph, masks)
        limits = self._limits(self.ranking(self.open(scores, graph), graph), cost)
        return tuple(limit.aim(drop) for limit in limits)

    def collapsed(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph
    ) -> tuple[str, ...]:
        """The layers all of whose units come before another one that went."""
        ranking = self.ranking(self.open(scores, graph), graph)
        return first_emptied(graph, ranking.unprotected(gone(graph, masks)))

    def notes(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[str, ...]:
        """Also the layers that live because something is protected, and those nearly empty."""
        collapsed = self.collapsed(masks, scores, graph)
        notes = super().notes(masks, scores, graph, cost)
        return (*notes, *told(graph, masks, collapsed, nearly=scores))

    def ranking(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> Ranking:
        """The units of these groups in the order in which they go."""
        return Ranking(self.pool(self.normalise(scores) if self.normalise else scores, graph))

    def _masks(self, scores: dict[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        ranking = self.ranking(scores, graph)
        return ranking.masks(self.removed(ranking, self._limits(ranking, cost)))

    def removed(self, ranking: Ranking, limits: Sequence[Limit]) -> int:
        """How many units go; ConfigError where a limit is out of reach and must not be missed."""
        removed = fewest(ranking, limits)
        if removed is None and self.on_miss == "refuse":
            raise _out_of_reach(ranking, limits)
        return ranking.steps if removed is None else removed

    @abstractmethod
    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        """What the network must not exceed."""


def check_budget(name: str, kept: float) -> None:
    """Raise ConfigError when a number is neither a share up to 1 nor a count above."""
    number(f"selection.{name}", kept, above=0)
    if kept > 1 and kept != int(kept):
        raise ConfigError(
            f"selection.{name}={kept} is neither a share up to 1 nor a whole number; "
            "above 1 it means at most so many"
        )


def _out_of_reach(ranking: Ranking, limits: Sequence[Limit]) -> ConfigError:
    """Names the first limit that the smallest network exceeds, and what can be reached."""
    drop = ranking.drop(ranking.steps)
    limit = next(limit for limit in limits if limit.price(drop) > limit.budget)
    least, full = limit.price(drop) / limit.per, limit.price(ranking.drop(0)) / limit.per
    if limit.per != 1:
        least = ceil(least * 1e4) / 1e4  # what is shown can be asked for
    return ConfigError(
        f"selection.{limit.setting}={limit.asked} cannot be reached: these scores, min_keep and "
        f"round_to leave {least:.10g} to {full:.10g}; ask for that, lower selection.min_keep, or "
        "take the smallest network with selection.on_miss=nearest"
    )
