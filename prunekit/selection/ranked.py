"""Selections that rank the units of all groups together: a share of all, or a budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.checks import instance, number
from prunekit.errors import ConfigError
from prunekit.selection.base import Masks, Selection, checked, protected, share, untouched, whole
from prunekit.selection.normalise import Normalise

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel


@dataclass(frozen=True)
class _Ranked(Selection):
    """A selection that removes the lowest-scored units of all groups, one after the other."""

    _: KW_ONLY
    normalise: Normalise | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalise is not None:
            instance("selection.normalise", self.normalise, Normalise)

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """One threshold over all groups, apart from the units that are protected."""
        known = checked(scores, graph)
        known = self.normalise(known) if self.normalise else known
        ranking = Ranking(known, protected(known, graph, self.min_keep))
        whole = untouched(scores, graph)

        def drop(removed: int) -> Tensor:
            return graph.drop({n: ~mask for n, mask in ranking.masks(removed).items()})

        return ranking.masks(self._removed(ranking, drop, cost)) | whole

    @abstractmethod
    def _removed(self, ranking: Ranking, drop: Callable[[int], Tensor], cost: CostModel) -> int:
        """How many units of the ranking go; `drop` gives the unit vector for a number."""


@dataclass(frozen=True)
class Global(_Ranked):
    """Keeps a share of all scored units, exactly, by one threshold over all groups."""

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number("selection.keep", self.keep, above=0, at_most=1)

    def _removed(self, ranking: Ranking, drop: Callable[[int], Tensor], cost: CostModel) -> int:
        removed = ranking.total - share(self.keep, ranking.total)
        if removed > ranking.removable:
            least = (ranking.total - ranking.removable) / ranking.total
            raise ConfigError(_unreachable("keep", self.keep, f"{least:.4g}"))
        return removed


@dataclass(frozen=True)
class MacsTarget(_Ranked):
    """The largest network within a budget of multiply-adds.

    `keep` is a share of the full network's in (0, 1], or a whole number above 1: at most so many.
    """

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_budget("keep", self.keep)

    def _removed(self, ranking: Ranking, drop: Callable[[int], Tensor], cost: CostModel) -> int:
        return fewest("keep", self.keep, ranking, lambda n: cost.macs(drop(n)))


@dataclass(frozen=True)
class ParamsTarget(_Ranked):
    """The largest network within a budget of parameters; `keep` as for MacsTarget."""

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_budget("keep", self.keep)

    def _removed(self, ranking: Ranking, drop: Callable[[int], Tensor], cost: CostModel) -> int:
        return fewest("keep", self.keep, ranking, lambda n: cost.params(drop(n)))


@dataclass(frozen=True)
class Budgets(_Ranked):
    """The largest network that is within both a budget of MACs and one of parameters."""

    macs: float
    params: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_budget("macs", self.macs)
        _check_budget("params", self.params)

    def _removed(self, ranking: Ranking, drop: Callable[[int], Tensor], cost: CostModel) -> int:
        return max(
            fewest("macs", self.macs, ranking, lambda n: cost.macs(drop(n))),
            fewest("params", self.params, ranking, lambda n: cost.params(drop(n))),
        )


class Ranking:
    """All scored units from the one that goes first to the last, less those that are protected.

    Lowest score first; of equal scores the later unit goes first. `total` counts all scored units,
    `removable` those that may go, which are not in the masks `stays`.
    """

    def __init__(self, scores: Mapping[str, Tensor], stays: Mapping[str, Tensor]) -> None:
        self._widths = {name: len(score) for name, score in scores.items()}
        free = ~torch.cat([stays[name] for name in scores])
        order = torch.cat(list(scores.values())).argsort(descending=True, stable=True).flip(0)
        self._order = order[free[order]]
        self.total, self.removable = len(order), len(self._order)

    def masks(self, removed: int) -> Masks:
        """What is kept when the first `removed` units are gone."""
        flat = whole(self.total)
        flat[self._order[:removed]] = False
        return dict(zip(self._widths, flat.split(list(self._widths.values())), strict=True))


def fewest(name: str, kept: float, ranking: Ranking, price: Callable[[int], int]) -> int:
    """The smallest number of removed units whose price is within the budget, by bisection.

    `kept` is a share of `price(0)` up to 1, above that the budget itself. Raises ConfigError that
    names the smallest reachable price.
    """
    full, least = price(0), price(ranking.removable)
    budget = kept * full * (1 + 1e-12) if kept <= 1 else kept  # a share given as a ratio of counts
    if least > budget:
        reachable = f"{least / full:.4g}" if kept <= 1 else f"{least}"
        raise ConfigError(_unreachable(name, kept, reachable))
    low, high = -1, ranking.removable
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if price(middle) <= budget else (middle, high)
    return high


def _check_budget(name: str, kept: float) -> None:
    number(f"selection.{name}", kept, above=0)
    if kept > 1 and kept != int(kept):
        raise ConfigError(
            f"selection.{name}={kept} is neither a share up to 1 nor a whole number; "
            "above 1 it means at most so many"
        )


def _unreachable(name: str, kept: float, least: str) -> str:
    return (
        f"selection.{name}={kept} cannot be reached: these scores and selection.min_keep leave at "
        f"least {least}; ask for that, or lower min_keep"
    )
