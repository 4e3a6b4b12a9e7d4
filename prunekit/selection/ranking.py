"""A ranking of the units of all groups, and the search for the largest network within limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.selection.base import BudgetResult, Masks, Scored, Selected
from prunekit.selection.candidates import AdaptiveSelection, CandidateUnits, ResultFactory
from prunekit.selection.emptied_layers import describe_emptied_layers, find_emptied_layers
from prunekit.selection.nothing_removed import why_nothing
from prunekit.validate import number

if TYPE_CHECKING:
    from prunekit.graph import ChannelMask
    from prunekit.measure import CostModel

_SMALL = 0.001  # share of the costs from which on it is told that no cut changes them


class Normalise(ABC):
    """Scales the scores of each group, so that one threshold can compare those of all groups."""

    @abstractmethod
    def scale(self, score: Tensor) -> Tensor:
        """Return the divisor of one group's scores, a positive scalar tensor."""

    def __call__(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Divide the scores of every group by its scale; zeros stay zeros."""
        return {name: s / self.scale(s) if s.any() else s for name, s in scores.items()}


@dataclass(frozen=True)
class MaxNorm(Normalise):
    """Divides by the group's largest absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """Return the largest absolute score."""
        return score.abs().max()


@dataclass(frozen=True)
class MeanNorm(Normalise):
    """Divides by the group's mean absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """Return the mean absolute score."""
        return score.abs().mean()


def relative_ranks(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace scores by ranks within the group, from near 0 for the worst to near 1 for the best.

    One threshold on these ranks keeps the same share of every group. Of equal scores the earlier
    one ranks higher.
    """
    return {name: _relative_rank(score) for name, score in scores.items()}


def _relative_rank(score: Tensor) -> Tensor:
    rank = score.argsort(descending=True, stable=True).argsort()
    return 1 - (rank.double() + 0.5) / len(score)


class Ranking:
    """The candidate units in the order of their removal, without the protected ones.

    The lowest score is removed first, and of equal scores the later unit. `steps` is the number of
    units that may be removed. Removing more units always gives a subnetwork, even when the numbers
    of units are rounded.
    """

    def __init__(self, pool: CandidateUnits) -> None:
        order = pool.worst_first()
        self.pool = pool
        self._groups = pool.group[order[~pool.protected[order]]]
        self.steps = len(self._groups)

    def counts(self, count: int) -> Tensor:
        """Return how many units every group keeps without the first `count`, before rounding."""
        lost = torch.bincount(self._groups[:count], minlength=len(self.pool.widths))
        return self.pool.widths - lost

    def masks(self, count: int) -> Masks:
        """Return the masks after the first `count` units are removed."""
        return self.pool.masks(self.counts(count))

    def removed(self, count: int) -> Tensor:
        """Return the same as one mask over unit ids, True = removed."""
        return self.pool.removed(self.counts(count))

    def unprotected(self, removed: Tensor) -> Tensor:
        """Return the mask over unit ids that the scores alone would give (True = removed).

        Every unit that ranks at or below the best of the `removed` ones is in it, protected or not.
        """
        order = self.pool.worst_first()
        places = removed[self.pool.units[order]].nonzero().flatten()
        mask = torch.zeros(len(order), dtype=torch.bool)
        mask[order[: int(places.max()) + 1 if len(places) else 0]] = True
        return self.pool.unit_mask(mask)


@dataclass(frozen=True)
class Limit:
    """An upper bound on some cost of the network, such as its multiply-adds.

    `cost_fn` returns the cost for a mask over unit ids (True = removed); removing more units must
    not raise it. `maximum` is the bound in its units. `requested` is the bound in multiples of
    `reference`, which is the cost of the full network where the setting is a share. `setting` is
    the key that the user set. `aside` is a cost that no cut changes, beside that of `cost_fn` where
    the setting is a share, and a part of it otherwise.
    """

    name: str
    setting: str
    requested: float
    cost_fn: Callable[[Tensor], float]
    maximum: float
    reference: float = 1
    aside: float = 0

    def untouched(self, full: float) -> str:
        """Say which share of the full network's cost no cut changes; empty if there is none."""
        share = self.aside / (full + self.aside if self.requested <= 1 else full) if full else 0.0
        return (
            f"{share:.1%} of the {self.name} are in products of activations and recurrent layers, "
            "which no cut changes"
            if share >= _SMALL
            else ""
        )

    def notes(self, removed: Tensor) -> tuple[str, ...]:
        """Return a sentence on the cost that no cut changes, if there is some."""
        full = self.cost_fn(torch.zeros_like(removed))
        told = self.untouched(full)
        if not told or self.requested > 1:
            return (told,) if told else ()
        kept = (self.cost_fn(removed) + self.aside) / (full + self.aside)
        return (
            f"{told}; {self.requested:.6g} is a share of the others, and {kept:.1%} of all stay",
        )

    def evaluate(self, removed: Tensor) -> BudgetResult:
        """Compare a network with the limit."""
        cost = self.cost_fn(removed)
        satisfied = cost <= self.maximum
        return BudgetResult(self.name, self.requested, cost / self.reference, satisfied)


def budget_limit(
    name: str,
    setting: str,
    keep: float,
    cost_fn: Callable[[Tensor | None], float],
    aside: float = 0,
) -> Limit:
    """Return the limit for `keep`, a share of the full network up to 1 and an amount above.

    `cost_fn(None)` is the cost of the full network; `aside` is that of `Limit`.
    """
    reference = cost_fn(None) if keep <= 1 else 1
    slack = 1 + 1e-12  # a share may be given as a ratio of counts
    return Limit(name, setting, keep, cost_fn, keep * reference * slack, reference, aside)


def macs_limit(setting: str, keep: float, cost: CostModel) -> Limit:
    """Return the limit on multiply-adds: a share of those of layers, or an amount of all."""
    products = getattr(cost, "product_macs", 0)  # cost models of another kind may count none

    def layer_macs(removed: Tensor | None) -> int:
        return cost.macs(removed) - products

    counted = layer_macs if keep <= 1 else cost.macs
    return budget_limit("MACs", setting, keep, counted, aside=products)


def min_units_to_remove(ranking: Ranking, limits: Sequence[Limit]) -> int | None:
    """Find the smallest number of units whose removal meets all limits, by bisection.

    Return None where the limits are not met even without all units that may be removed.
    """

    def satisfied(count: int) -> bool:
        removed = ranking.removed(count)
        return all(limit.cost_fn(removed) <= limit.maximum for limit in limits)

    if not satisfied(ranking.steps):
        return None
    low, high = -1, ranking.steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if satisfied(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class RankedSelection(AdaptiveSelection):
    """A selection that removes the lowest-scored units of all groups until its limits are met.

    `on_miss` decides what happens when even the smallest network exceeds a limit: `refuse`, or
    `nearest`, which takes that network.
    """

    _: KW_ONLY
    on_miss: Annotated[
        Literal["refuse", "nearest"], "nearest: the smallest network where the budget is too low"
    ] = "refuse"

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        ranking = self._ranking(scored)
        limits = self._limits(ranking, scored.cost)
        masks = ranking.masks(self._count(ranking, limits))
        return masks, lambda keep: self._result(scored, ranking, limits, keep)

    def _result(
        self, scored: Scored, ranking: Ranking, limits: Sequence[Limit], keep: ChannelMask
    ) -> Selected:
        emptied = self._emptied(scored, ranking, keep)
        return Selected(
            keep=keep,
            budgets=tuple(limit.evaluate(keep.removed) for limit in limits),
            emptied=emptied,
            notes=(
                *describe_emptied_layers(scored.graph, keep, emptied, nearly=scored.scores),
                *(note for limit in limits for note in limit.notes(keep.removed)),
            ),
        )

    def _emptied(self, scored: Scored, ranking: Ranking, keep: ChannelMask) -> tuple[str, ...]:
        """Return the layers that only protection kept from becoming empty."""
        return find_emptied_layers(scored.graph, ranking.unprotected(keep.removed))

    def _ranking(self, scored: Scored) -> Ranking:
        scale = self._scale(scored)
        scores = scale(scored.scores) if scale else scored.scores
        return Ranking(self._pool(replace(scored, scores=scores)))

    @abstractmethod
    def _scale(self, scored: Scored) -> Normalise | None:
        """Return how scores are scaled before they are compared between groups."""

    def _count(self, ranking: Ranking, limits: Sequence[Limit]) -> int:
        """Return how many units to remove; raises ConfigError for a refused miss (`on_miss`)."""
        count = min_units_to_remove(ranking, limits)
        if count is None and self.on_miss == "refuse":
            raise _out_of_reach(ranking, limits)
        return ranking.steps if count is None else count

    @abstractmethod
    def _limits(self, ranking: Ranking, cost: CostModel) -> tuple[Limit, ...]:
        """Return the limits that the network has to meet."""


@dataclass(frozen=True)
class ShareOrCount:
    """A bound that is a share of the full network up to 1, and a whole number above."""

    def check(self, name: str, value: float) -> None:
        """Raise ConfigError where the value is neither."""
        number(name, value, above=0)
        if value > 1 and value != int(value):
            raise ConfigError(
                f"{name}={value} is neither a share up to 1 nor a whole number; "
                "above 1 it means at most so many"
            )

    def __str__(self) -> str:
        return "a share up to 1, or a whole number"


Amount = Annotated[float, ShareOrCount()]


def _out_of_reach(ranking: Ranking, limits: Sequence[Limit]) -> ConfigError:
    """Return the error for the first limit that the smallest network exceeds, with the range."""
    removed = ranking.removed(ranking.steps)
    if not bool(removed.any()):
        widths = dict(zip(ranking.pool.names, ranking.pool.widths.tolist(), strict=True))
        first = limits[0]
        return ConfigError(
            f"selection.{first.setting}={first.requested} cannot be reached: {why_nothing(widths)}"
        )
    limit = next(limit for limit in limits if limit.cost_fn(removed) > limit.maximum)
    least = limit.cost_fn(removed) / limit.reference
    whole = limit.cost_fn(ranking.removed(0))
    full, untouched = whole / limit.reference, limit.untouched(whole)
    if limit.reference != 1:
        least = ceil(least * 1e4) / 1e4  # round up, so that the printed value can be requested
    return ConfigError(
        f"selection.{limit.setting}={limit.requested} cannot be reached: these scores, min_keep "
        f"and round_to leave {least:.10g} to {full:.10g}; ask for that, lower selection.min_keep, "
        "or take the smallest network with selection.on_miss=nearest"
        + (f"; {untouched}" if untouched else "")
    )
