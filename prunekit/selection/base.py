"""What a selection is, and what all of them do alike: check scores, protect the last units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.checks import integer
from prunekit.errors import ConfigError, one_of
from prunekit.measure import CostModel, FoldedCost

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure.latency_table import Track

Masks = dict[str, Tensor]
_LISTED = 4


@dataclass(frozen=True)
class Aim:
    """What a selection was asked to keep and what its choice has, in the same unit.

    `met` is False where the choice exceeds what was asked for, as the nearest that there is.
    `predicted` is what the search went by where `reached` is a measurement.
    """

    name: str
    asked: float
    reached: float
    met: bool = True
    predicted: float | None = None


@dataclass(frozen=True)
class Selection(ABC):
    """Decides which units of a network stay.

    A group never has fewer than `min_keep` units (all of them, if it is smaller), and every layer
    keeps an input and an output channel, unless `min_keep` is 0; see `protected`. `rounds` is how
    often a caller that trains scores, cuts and tunes on the way there; `choose` gives the end.
    """

    _: KW_ONLY
    min_keep: int = 1
    rounds: int = 1

    def __post_init__(self) -> None:
        integer("selection.min_keep", self.min_keep, at_least=0)
        integer("selection.rounds", self.rounds, at_least=1)

    @abstractmethod
    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """Group name -> bool mask over its units, True = keep, for every group of the graph."""

    def costs(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Tensor | tuple[Tensor, ...],
        device: str = "cpu",
        track: Track | None = None,
    ) -> CostModel:
        """The cost model that `choose` needs; one that measures may show progress by `track`.

        Matrices that were attached count as they will when they are folded.
        """
        return FoldedCost(model, graph)

    def within(self, run: Path) -> Selection:
        """Itself, with what it reads from a file and was not given taken from a run directory."""
        return self

    def files(self) -> Mapping[str, Path]:
        """The files that it reads, by what they are called in `settings.json`.

        What they hold is then part of what a run is, and the setting `path` no more.
        """
        return {}

    def aims(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[Aim, ...]:
        """What was asked for and what `masks` have of it; none where no total was asked for."""
        return ()

    def collapsed(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph
    ) -> tuple[str, ...]:
        """The layers that the scores alone would have emptied, whatever was done about it."""
        return ()

    def notes(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[str, ...]:
        """What a person should know about a choice, a sentence each."""
        return ()


def best(score: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """A mask of the `count` largest entries, those in the mask `first` before all others.

    Of equal ones the earlier are taken.
    """
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[best_first(score, first)[:count]] = True
    return mask


def best_first(score: Tensor, first: Tensor | None = None) -> Tensor:
    """The order from the best entry to the worst, those in the mask `first` before all others."""
    order = score.argsort(descending=True, stable=True)
    return order if first is None else order[first[order].argsort(descending=True, stable=True)]


def protected(scores: Mapping[str, Tensor], graph: ChannelGraph, min_keep: int) -> Masks:
    """Which units stay, however little is asked: what keeps every group and every layer alive.

    They are the best `min_keep` units of each group, and the best unit on each side of a layer:
    a group may span layers that have only some of its units each. With `min_keep` 0, none.
    """
    if min_keep == 0:
        return {name: torch.zeros(len(score), dtype=torch.bool) for name, score in scores.items()}
    groups = [group for group in graph.groups if group.name in scores]
    worth = torch.full((graph.count,), torch.inf, dtype=torch.float64)  # unscored units stay anyway
    for group in groups:
        worth[group.units] = scores[group.name]
    stays = torch.zeros(graph.count, dtype=torch.bool)
    for units in _sides(graph):
        stays[units[worth[units].argmax()]] = True
    return {g.name: stays[g.units] | best(scores[g.name], min_keep) for g in groups}


def _sides(graph: ChannelGraph) -> list[Tensor]:
    """The distinct sets of units that layers have as inputs or as outputs, sorted."""
    sides = [units.unique() for units in (*graph.ins.values(), *graph.outs.values())]
    return [*{tuple(units.tolist()): units for units in sides if len(units)}.values()]


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
    if not graph.groups:
        why = "; ".join(graph.stays()[:_LISTED]) or "it has no layers with channels"
        raise ConfigError(f"no channel of this network can be removed: {why}")
    if not scores:
        raise ConfigError("there are no scores, so nothing to select; check the criterion")
    return {name: scores[name].detach().double().cpu() for name in widths if name in scores}


def gone(graph: ChannelGraph, masks: Masks) -> Tensor:
    """What masks (True: keep) take away, as a mask over unit ids."""
    return graph.drop({name: ~mask for name, mask in masks.items()})


def untouched(scores: Mapping[str, Tensor], graph: ChannelGraph) -> Masks:
    """Whole masks for the groups that have no scores."""
    return {g.name: whole(len(g.units)) for g in graph.groups if g.name not in scores}


def whole(width: int) -> Tensor:
    """A mask that keeps all."""
    return torch.ones(width, dtype=torch.bool)
