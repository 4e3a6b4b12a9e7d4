"""Which units stay: zeros go, a share per layer or over all, a budget, or given widths.

Every selection keeps the best-scored units of a group; of equal scores the earlier one is better.
Groups without scores stay whole. Every setting says what is kept, never what goes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.checks import integer, number
from prunekit.errors import ArtifactError, ConfigError, one_of

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel

Masks = dict[str, Tensor]


class Normalise(ABC):
    """Makes the scores of different groups comparable before one threshold cuts them all."""

    @abstractmethod
    def scale(self, score: Tensor) -> Tensor:
        """What the scores of one group are divided by, a positive scalar tensor."""

    def __call__(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores of every group over its scale; a group of zeros stays as it is."""
        return {name: s / self.scale(s) if s.any() else s for name, s in scores.items()}


class MaxNorm(Normalise):
    """Divides by the group's largest absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The largest absolute score."""
        return score.abs().max()


class MeanNorm(Normalise):
    """Divides by the group's mean absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The mean absolute score."""
        return score.abs().mean()


@dataclass(frozen=True)
class Selection(ABC):
    """Decides which units of a network stay.

    A group never has fewer than `min_keep` units (all of them, if it is smaller), so it is never
    emptied unless `min_keep` is 0.
    """

    _: KW_ONLY
    min_keep: int = 1

    def __post_init__(self) -> None:
        integer("selection.min_keep", self.min_keep, at_least=0)

    @abstractmethod
    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """Group name -> bool mask over its units, True = keep, for every group of the graph."""

    def _floor(self, width: int) -> int:
        return min(self.min_keep, width)


@dataclass(frozen=True)
class Zeros(Selection):
    """Drops the units whose score is exactly zero, as solvers with a proximal map leave them."""

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """An all-zero group keeps its first `min_keep` units."""
        return {
            name: best(score, max(int((score != 0).sum()), self._floor(len(score))))
            for name, score in checked(scores, graph).items()
        } | untouched(scores, graph)


@dataclass(frozen=True)
class PerLayer(Selection):
    """Keeps the same share of every group, rounded to the nearest count."""

    keep: float

    def __post_init__(self) -> None:
        super().__post_init__()
        number("selection.keep", self.keep, above=0, at_most=1)

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """Halves are rounded up."""
        return {
            name: best(score, max(_share(self.keep, len(score)), self._floor(len(score))))
            for name, score in checked(scores, graph).items()
        } | untouched(scores, graph)


@dataclass(frozen=True)
class Widths(Selection):
    """Keeps a given number of units in each named group; other groups stay whole."""

    widths: Mapping[str, int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.widths, Mapping):
            raise ConfigError(
                f"selection.widths={self.widths!r} does not map groups to counts; "
                "give for instance {conv1: 2, fc1: 77}"
            )
        for name, width in self.widths.items():
            integer(f"selection.widths.{name}", width, at_least=0)
            if width < self.min_keep:
                raise ConfigError(
                    f"selection.widths.{name}={width} is below selection.min_keep={self.min_keep}; "
                    "lower that too if it is meant"
                )

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """Raises ConfigError for a group that the network or the scores lack, or a wider width."""
        scores = checked(scores, graph)
        masks = {group.name: _whole(len(group.units)) for group in graph.groups}
        for name, width in self.widths.items():
            if name not in scores:
                raise ConfigError(
                    f"selection.widths: no scores of {name!r}; {one_of(name, scores)}"
                )
            if width > len(scores[name]):
                raise ConfigError(
                    f"selection.widths.{name}={width} is too many, it has {len(scores[name])} units"
                )
            masks[name] = best(scores[name], width)
        return masks


@dataclass(frozen=True)
class LikeRun(Selection):
    """Keeps as many units per group as another run did: the scores decide only which.

    `path` is a run directory, its prune directory, or the plan.json in it. Baselines are compared
    in this way at equal widths (SSR, footnote 12).
    """

    path: str | Path

    def __post_init__(self) -> None:
        super().__post_init__()
        read_plan(self.path)

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """Raises ArtifactError when the other run pruned a network of other widths."""
        plan = read_plan(self.path)
        found = {group.name: len(group.units) for group in graph.groups}
        if {name: entry["of"] for name, entry in plan.items()} != found:
            odd = next(n for n in (*found, *plan) if found.get(n) != plan.get(n, {}).get("of"))
            raise ArtifactError(
                f"{self.path} is the plan of another network: {odd} has "
                f"{plan.get(odd, {}).get('of', 0)} units there and {found.get(odd, 0)} here"
            )
        pruned = {n: e["kept"] for n, e in plan.items() if n in scores or e["kept"] < e["of"]}
        lowest = min([self.min_keep, *pruned.values()])
        return Widths(pruned, min_keep=lowest).choose(scores, graph, cost)


@dataclass(frozen=True)
class _Ranked(Selection):
    """A selection that removes the lowest-scored units of all groups, one after the other."""

    _: KW_ONLY
    normalise: Normalise | None = None

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """One threshold over all groups, apart from the units that `min_keep` protects."""
        known = checked(scores, graph)
        ranking = Ranking(self.normalise(known) if self.normalise else known, self.min_keep)
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
        removed = ranking.total - _share(self.keep, ranking.total)
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

    In each group the best `min_keep` units are protected. Lowest score first; of equal scores the
    later unit goes first. `total` counts all scored units, `removable` those that may go.
    """

    def __init__(self, scores: Mapping[str, Tensor], min_keep: int) -> None:
        self._widths = {name: len(score) for name, score in scores.items()}
        free = torch.cat([~best(s, min(min_keep, len(s))) for s in scores.values()])
        order = torch.cat(list(scores.values())).argsort(descending=True, stable=True).flip(0)
        self._order = order[free[order]]
        self.total, self.removable = len(order), len(self._order)

    def masks(self, removed: int) -> Masks:
        """What is kept when the first `removed` units are gone."""
        flat = _whole(self.total)
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


def best(score: Tensor, count: int) -> Tensor:
    """A mask of the `count` largest entries; of equal ones the earlier are taken."""
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[score.argsort(descending=True, stable=True)[:count]] = True
    return mask


def checked(scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Tensor]:
    """The scores as double vectors on the CPU, in the order of the graph's groups.

    Raises ConfigError for unknown groups, wrong lengths, numbers not finite, or no scores at all.
    """
    widths = {group.name: len(group.units) for group in graph.groups}
    for name, score in scores.items():
        if name not in widths:
            raise ConfigError(f"scores: no group {name!r}; {one_of(name, widths)}")
        if score.shape != (widths[name],):
            raise ConfigError(
                f"scores: {name} has {widths[name]} units, its scores have shape "
                f"{tuple(score.shape)}; score the network that is pruned"
            )
        if not bool(score.isfinite().all()):
            raise ConfigError(f"scores: those of {name} are not finite; check the source model")
    if not scores:
        raise ConfigError("there are no scores, so nothing to select; check the network's groups")
    return {name: scores[name].detach().double().cpu() for name in widths if name in scores}


def untouched(scores: Mapping[str, Tensor], graph: ChannelGraph) -> Masks:
    """Whole masks for the groups that have no scores."""
    return {g.name: _whole(len(g.units)) for g in graph.groups if g.name not in scores}


def read_plan(path: str | Path) -> dict[str, dict[str, int]]:
    """Group name -> {"kept": n, "of": m} of a pruned run; ArtifactError when it has none."""
    file = _plan_file(Path(path))
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))["groups"]
        return {
            name: {"kept": int(entry["kept"]), "of": int(entry["of"])}
            for name, entry in groups.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} is no plan of a pruned run; prune that run again") from error


def _plan_file(path: Path) -> Path:
    for place in (path, path / "plan.json", path / "prune" / "plan.json"):
        if place.is_file():
            return place
    raise ArtifactError(f"{path} has no prune/plan.json; give a run that has been pruned")


def _whole(width: int) -> Tensor:
    return torch.ones(width, dtype=torch.bool)


def _share(kept: float, total: int) -> int:
    return int(kept * total + 0.5)


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
