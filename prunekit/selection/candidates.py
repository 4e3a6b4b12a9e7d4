"""The units that a selection may remove, and selections that search for widths."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatchcase
from math import gcd
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError, listed, one_of
from prunekit.graph import ChannelMask
from prunekit.schema import Count, Text
from prunekit.selection.base import (
    BudgetResult,
    Masks,
    Scored,
    Selected,
    Selection,
    order_best_first,
    protect_units,
    validate_scores,
)

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

ResultFactory = Callable[[ChannelMask], Selected]  # makes the result for the units that are kept


@dataclass(frozen=True)
class AdaptiveSelection(Selection):
    """A selection that searches for the number of units that every group keeps.

    The layer that a group is named after keeps a multiple of `round_to` channels, unless the group
    is narrower than that or keeps all of its units. Layers that match a pattern in `ignore`
    (`layer4.*`) keep all of their output channels, and so do the groups that these belong to.
    Groups without scores are kept whole.
    """

    _: KW_ONLY
    round_to: Annotated[Count, "channels kept are multiples of this"] = 1
    ignore: Annotated[Sequence[Text], "layers that keep all outputs, e.g. [layer4.*]"] = ()

    def select(self, scored: Scored) -> Selected:
        """Search for the widths; raises ConfigError where no group may be narrowed."""
        scored, notes = self._without_ignored(scored)
        masks, make_result = self._decide(scored)

        def result(keep: ChannelMask) -> Selected:
            selected = make_result(keep)
            messages = (*notes, *_missed_budgets(selected.budgets), *selected.notes)
            return replace(selected, notes=messages, recount=result)

        return result(ChannelMask.of(scored.graph, masks))

    @abstractmethod
    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        """Return masks of the groups that have scores, and the function that makes the result."""

    def _without_ignored(self, scored: Scored) -> tuple[Scored, list[str]]:
        """Return the validated scores of groups that may be narrowed, and a note on the others."""
        graph, scores = scored.graph, validate_scores(scored.scores, scored.graph)
        ignored = ignored_groups(graph, self.ignore)
        remaining = {name: score for name, score in scores.items() if name not in ignored}
        if not remaining:
            raise ConfigError(
                f"selection.ignore={[*self.ignore]} leaves no group to select from; "
                "take a pattern out"
            )
        names = [g.name for g in graph.groups if g.name not in scores and g.name not in ignored]
        notes = [f"not scored, so kept whole: {listed(names, 4)}"] if names else []
        return replace(scored, scores=remaining), notes

    def _pool(self, scored: Scored) -> CandidateUnits:
        return CandidateUnits(scored.scores, scored.graph, self.min_keep, self.round_to)


class CandidateUnits:
    """The units of all groups that have scores, in one vector; `scores` follow the graph's order.

    Per group there are `names`, `widths` (the number of units) and `min_counts` (the number that
    is kept under any budget). Per unit there are `units` (the id), `scores`, `group` (the index of
    the group) and `protected`.
    """

    def __init__(
        self, scores: Mapping[str, Tensor], graph: ChannelGraph, min_keep: int, round_to: int = 1
    ) -> None:
        protected = protect_units(scores, graph, min_keep)
        ids = {group.name: group.units for group in graph.groups}
        steps = [_step(graph, name, ids[name], round_to) for name in scores]
        ranks = [order_best_first(score, protected[n]).argsort() for n, score in scores.items()]
        self.names, self._step = [*scores], torch.tensor(steps)
        self.widths = torch.tensor([len(score) for score in scores.values()])
        self.group = torch.arange(len(steps)).repeat_interleave(self.widths)
        self.scores, self._rank = torch.cat(list(scores.values())), torch.cat(ranks)
        self.units = torch.cat([ids[name] for name in scores])
        self.protected = torch.cat([protected[name] for name in scores])
        self.min_counts = self.round_up(self.count(self.protected))
        self._id_count = graph.count

    def worst_first(self) -> Tensor:
        """Return the indices of all units, lowest score first; of equal scores the later leads."""
        return self.scores.argsort(descending=True, stable=True).flip(0)

    def count(self, mask: Tensor) -> Tensor:
        """Return how many units of every group are True in a mask over all candidates."""
        return torch.bincount(self.group[mask], minlength=len(self.widths))

    def round_up(self, counts: Tensor) -> Tensor:
        """Return the smallest allowed number of units per group that is not below `counts`."""
        return ((counts + self._step - 1) // self._step * self._step).minimum(self.widths)

    def mask_of_best(self, counts: Tensor) -> Tensor:
        """Return a mask over all candidates with the best `counts` units of every group."""
        return self._rank < counts[self.group]

    def masks(self, counts: Tensor) -> Masks:
        """Return masks of the best `counts` units of every group, rounded to allowed numbers."""
        parts = torch.split(self._rounded(counts), self.widths.tolist())
        return dict(zip(self.names, parts, strict=True))

    def removed(self, counts: Tensor) -> Tensor:
        """Return the complement of `masks` as one mask over unit ids, True = removed."""
        return self.unit_mask(~self._rounded(counts))

    def unit_mask(self, mask: Tensor) -> Tensor:
        """Convert a mask over all candidates to one over unit ids."""
        flags = torch.zeros(self._id_count, dtype=torch.bool)
        flags[self.units] = mask
        return flags

    def _rounded(self, counts: Tensor) -> Tensor:
        near = (counts + self._step // 2) // self._step * self._step  # halves are rounded up
        return self.mask_of_best(near.minimum(self.widths).maximum(self.min_counts))


def _step(graph: ChannelGraph, name: str, units: Tensor, round_to: int) -> int:
    """Return how many units make a multiple of `round_to` channels in the layer `name`.

    One unit may be several channels there, such as one in every part of a grouped convolution.
    """
    if round_to == 1:
        return 1
    outs = graph.outs.get(name, units)
    own = outs[torch.isin(outs, units)]
    channels = len(own) // max(len(torch.unique(own)), 1)
    return round_to // gcd(round_to, max(channels, 1))


def _missed_budgets(budgets: Sequence[BudgetResult]) -> list[str]:
    """Return a line per exceeded budget, or one on the tightest if all stay well below."""
    exceeded = [f"{_comparison(b)}: the nearest there is" for b in budgets if not b.satisfied]
    if exceeded or not budgets:
        return exceeded
    tightest = max(budgets, key=lambda budget: budget.achieved / budget.requested)
    return [_comparison(tightest)] if tightest.achieved < 0.99 * tightest.requested else []


def _comparison(budget: BudgetResult) -> str:
    return f"asked to keep {budget.requested:.6g} of the {budget.name}, kept {budget.achieved:.6g}"


def ignored_groups(graph: ChannelGraph, patterns: Iterable[str]) -> set[str]:
    """Return the groups that have units among the outputs of a layer that matches a pattern.

    A pattern may match only layers whose outputs cannot be pruned anyway, such as a classifier.
    Raises ConfigError, with similar names, where it matches no layer.
    """
    return {
        name for pattern in patterns for name in matching_groups(graph, pattern, "selection.ignore")
    }


def values_by_group(graph: ChannelGraph, values: Mapping[str, float]) -> dict[str, float]:
    """Return for every group the value of the first pattern that matches; others are left out.

    Raises ConfigError for a pattern that matches nothing that can be pruned.
    """
    by_group: dict[str, float] = {}
    for pattern, value in values.items():
        names = matching_groups(graph, pattern, "selection.layers")
        if not names:
            raise ConfigError(
                f"selection.layers: no output channel of {pattern!r} can be cut; "
                f"{one_of(pattern, _accepted(group.name for group in graph.groups))}"
            )
        by_group = dict.fromkeys(names, value) | by_group
    return by_group


def matching_groups(graph: ChannelGraph, pattern: str, setting: str) -> set[str]:
    """Return the groups that have a unit among the outputs of a layer whose name matches."""
    layers = [name for name in graph.outs if fnmatchcase(name, pattern)]
    named = {group.name for group in graph.groups if fnmatchcase(group.name, pattern)}
    if not layers and not named:
        hint = one_of(pattern, _accepted(graph.outs))
        raise ConfigError(f"{setting}: {pattern!r} matches no layer; {hint}")
    matched = torch.zeros(graph.count, dtype=torch.bool)
    for name in layers:
        matched[graph.outs[name]] = True
    return named | {group.name for group in graph.groups if bool(matched[group.units].any())}


def _accepted(names: Iterable[str]) -> set[str]:
    """Return the names, and the patterns that match all layers inside a module."""
    exact = {*names}
    inside = {f"{'.'.join(n.split('.')[:i])}.*" for n in exact for i in range(1, n.count(".") + 1)}
    return exact | inside
