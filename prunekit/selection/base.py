"""The interface of selections, and the protection of the last units of every layer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError, one_of
from prunekit.graph import ChannelMask
from prunekit.registry import Registry
from prunekit.schema import Checked, Count, Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel

Masks = dict[str, Tensor]  # group name -> bool vector over its units, True = keep
_LISTED = 4


@dataclass(frozen=True)
class BudgetResult:
    """The amount that a selection was to keep, and the amount that its choice has.

    Both have the same unit. `satisfied` is False where the choice exceeds the request because
    nothing nearer exists. Where `achieved` is a measurement, `predicted` is the estimate that the
    search used.
    """

    name: str
    requested: float
    achieved: float
    satisfied: bool = True
    predicted: float | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A network whose units have scores: the input of a selection.

    `scores` has one number per unit of a group; larger means keep. `cost` gives the size of any
    narrowed network. `comparable` says that scores of different groups may be compared as they are.
    `model` and `data`, where they are given, are what a selection may measure for itself.
    """

    scores: Mapping[str, Tensor]
    graph: ChannelGraph
    cost: CostModel
    comparable: bool = False
    model: nn.Module | None = None
    data: Data | None = None


@dataclass(frozen=True, eq=False)
class Selected:
    """The result of a selection.

    `keep` is the choice, and `budgets` compares it with every budget. `emptied` names the layers
    that the scores alone would have emptied, whether or not they were protected. `notes` are
    sentences for the user. Selections that may remove whole residual blocks set `recount`, which
    recomputes the result for a mask that keeps fewer units.
    """

    keep: ChannelMask
    budgets: tuple[BudgetResult, ...] = ()
    emptied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recount: Callable[[ChannelMask], Selected] | None = None

    def after(self, keep: ChannelMask) -> Selected:
        """Return the result for `keep`, the mask of a cut that also removed blocks."""
        if torch.equal(keep.removed, self.keep.removed):
            return self
        return self.recount(keep) if self.recount is not None else replace(self, keep=keep)


@dataclass(frozen=True)
class Selection(Checked, ABC):
    """A rule that decides which units of a network are kept.

    A group keeps at least `min_keep` units (all of them if it has fewer), and every layer keeps an
    input and an output channel, unless `min_keep` is 0; see `protect_units`. `rounds` is the number
    of rounds of iterative pruning; `select` itself always returns the final choice.
    """

    _: KW_ONLY
    min_keep: Annotated[Whole, "units that every group keeps"] = 1
    rounds: Annotated[Count, "rounds of scoring, cutting, brief training (schedule.between)"] = 1

    @property
    def reduction(self) -> str:
        """The setting that asks for fewer units whatever the scores are; empty if none does."""
        return ""

    @property
    def all_kept(self) -> str:
        """The reason why everything is kept, where that is what the settings ask for."""
        return "the selection keeps every unit"

    @abstractmethod
    def select(self, scored: Scored) -> Selected:
        """Choose the units to keep.

        Raises ConfigError where a request is out of reach or does not fit the network.
        """

    def choose(
        self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> ChannelMask:
        """Return only the mask that `select` gives for these scores."""
        return self.select(Scored(scores, graph, cost)).keep

    def resolve_in(self, run: Path) -> Selection:
        """Return this selection with unset paths pointing to files of the run directory."""
        return self

    def files(self) -> Mapping[str, Path]:
        """Return the files that the selection reads, by name.

        Their content is part of the identity of a run. Raises ArtifactError for a missing file.
        """
        return {}


SELECTIONS: Registry[Selection] = Registry("selection")


def mask_of_best(score: Tensor, count: int, first: Tensor | None = None) -> Tensor:
    """Return a bool mask of the `count` best entries, in the order of `order_best_first`."""
    mask = torch.zeros(len(score), dtype=torch.bool)
    mask[order_best_first(score, first)[:count]] = True
    return mask


def order_best_first(score: Tensor, first: Tensor | None = None) -> Tensor:
    """Return the indices from the largest entry to the smallest; of equal ones the earlier leads.

    Entries in the mask `first` come before all others.
    """
    order = score.argsort(descending=True, stable=True)
    return order if first is None else order[first[order].argsort(descending=True, stable=True)]


def protect_units(scores: Mapping[str, Tensor], graph: ChannelGraph, min_keep: int) -> Masks:
    """Return masks of the units that are kept under any budget, so that no layer becomes empty.

    These are the best `min_keep` units of each group, and the best unit among the inputs and among
    the outputs of every layer, since a layer may have only some of a group's units. With
    `min_keep` 0 there are none.
    """
    if min_keep == 0:
        return {name: torch.zeros(len(score), dtype=torch.bool) for name, score in scores.items()}
    groups = [group for group in graph.groups if group.name in scores]
    worth = torch.full((graph.count,), torch.inf, dtype=torch.float64)  # groups without scores stay
    for group in groups:
        worth[group.units] = scores[group.name]
    protected = torch.zeros(graph.count, dtype=torch.bool)
    for units in _sides(graph):
        protected[units[worth[units].argmax()]] = True
    return {g.name: protected[g.units] | mask_of_best(scores[g.name], min_keep) for g in groups}


def _sides(graph: ChannelGraph) -> list[Tensor]:
    """Return the distinct sets of units that layers have as inputs or as outputs, sorted."""
    sides = [torch.unique(units) for units in (*graph.ins.values(), *graph.outs.values())]
    return [*{tuple(units.tolist()): units for units in sides if len(units)}.values()]


def validate_scores(scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Tensor]:
    """Return the scores as double vectors on the CPU, in the order of the graph's groups.

    Raises ConfigError for unknown groups, wrong lengths, non-finite numbers, or no scores at all.
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
        reason = "; ".join(graph.frozen_lines()[:_LISTED]) or "it has no layers with channels"
        raise ConfigError(f"no channel of this network can be removed: {reason}")
    if not scores:
        raise ConfigError("there are no scores, so nothing to select; check the criterion")
    return {name: scores[name].detach().double().cpu() for name in widths if name in scores}


def unscored_groups(scores: Mapping[str, Tensor], graph: ChannelGraph) -> list[str]:
    """Return the names of the groups without scores, which every selection keeps whole."""
    return [group.name for group in graph.groups if group.name not in scores]
