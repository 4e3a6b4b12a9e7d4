"""What a selection is asked and answers, and what all of them do alike: protect the last units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError, one_of
from prunekit.graph import ChannelMask
from prunekit.registry import Registry
from prunekit.schema import Checked, Count, Whole

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel

Masks = dict[str, Tensor]  # group name -> bool vector over its units, True = kept
_LISTED = 4


@dataclass(frozen=True)
class BudgetResult:
    """What a selection was asked to keep and what its choice has, in the same unit.

    `met` is False where the choice exceeds what was asked for, as the nearest that there is.
    `predicted` is what the search went by where `reached` is a measurement.
    """

    name: str
    requested: float
    achieved: float
    satisfied: bool = True
    predicted: float | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A network whose units have scores: what a selection decides on.

    `scores` gives one number per unit of a group, larger = keep. `cost` prices any choice.
    `comparable` says that scores of different groups are made to be compared as they are.
    """

    scores: Mapping[str, Tensor]
    graph: ChannelGraph
    cost: CostModel
    comparable: bool = False


@dataclass(frozen=True, eq=False)
class Selected:
    """The answer of a selection.

    `keep` says what is kept, `budgets` which totals were asked for and reached, `emptied` which layers
    the scores alone would have emptied, whatever was done about it, and `notes` what a person
    should know, a sentence each. `recount` makes the answer for fewer units, for a selection that
    lets residual blocks go whole.
    """

    keep: ChannelMask
    budgets: tuple[BudgetResult, ...] = ()
    emptied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recount: Callable[[ChannelMask], Selected] | None = None

    def after(self, keep: ChannelMask) -> Selected:
        """The answer once a cut has kept `keep`, which lacks the units of removed blocks."""
        if torch.equal(keep.removed, self.keep.removed):
            return self
        return self.recount(keep) if self.recount is not None else replace(self, keep=keep)


@dataclass(frozen=True)
class Selection(Checked, ABC):
    """Decides which units of a network are kept.

    A group never has fewer than `min_keep` units (all of them, if it is smaller), and every layer
    keeps an input and an output channel, unless `min_keep` is 0; see `protect_units`. `rounds` is how
    often a caller that trains scores, cuts and tunes on the way there; `select` gives the end.
    """

    _: KW_ONLY
    min_keep: Annotated[Whole, "units that every group keeps"] = 1
    rounds: Annotated[Count, "rounds of scoring, cutting, brief training (schedule.between)"] = 1

    @abstractmethod
    def select(self, scored: Scored) -> Selected:
        """Decide once; the answer says all there is to say about the choice.

        Raises ConfigError where what was asked for is out of reach or does not fit the network.
        """

    def choose(
        self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> ChannelMask:
        """What `select` keeps of a network with these scores."""
        return self.select(Scored(scores, graph, cost)).keep

    def resolve_in(self, run: Path) -> Selection:
        """The same selection in a run directory, where files that it reads may lie."""
        return self

    def files(self) -> Mapping[str, Path]:
        """What it reads -> the file, whose content decides; ArtifactError for a missing one."""
        return {}


SELECTIONS: Registry[Selection] = Registry("selection")


def mask_of_best(score: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """A mask of the `count` largest entries, those in the mask `first` before all others.

    Of equal ones the earlier are taken.
    """
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[order_best_first(score, first)[:count]] = True
    return mask


def order_best_first(score: Tensor, first: Tensor | None = None) -> Tensor:
    """The order from the best entry to the worst, those in the mask `first` before all others."""
    order = score.argsort(descending=True, stable=True)
    return order if first is None else order[first[order].argsort(descending=True, stable=True)]


def protect_units(scores: Mapping[str, Tensor], graph: ChannelGraph, min_keep: int) -> Masks:
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
    return {g.name: stays[g.units] | mask_of_best(scores[g.name], min_keep) for g in groups}


def _sides(graph: ChannelGraph) -> list[Tensor]:
    """The distinct sets of units that layers have as inputs or as outputs, sorted."""
    sides = [units.unique() for units in (*graph.ins.values(), *graph.outs.values())]
    return [*{tuple(units.tolist()): units for units in sides if len(units)}.values()]


def validate_scores(scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Tensor]:
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


def unscored_groups(scores: Mapping[str, Tensor], graph: ChannelGraph) -> list[str]:
    """The names of the groups that have no scores, which every selection keeps whole."""
    return [group.name for group in graph.groups if group.name not in scores]
