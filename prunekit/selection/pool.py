"""The units that may go, and the selections that find how many of every group stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from math import gcd
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError, listed
from prunekit.graph import ChannelMask
from prunekit.schema import Count, Text
from prunekit.selection.base import (
    Aim,
    Masks,
    Scored,
    Selected,
    Selection,
    best_first,
    checked,
    protected,
)
from prunekit.selection.patterns import ignored

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

Describe = Callable[[ChannelMask], Selected]  # the answer for what is kept


@dataclass(frozen=True)
class FindsWidths(Selection):
    """A selection that finds how many units of every group stay.

    The channels that remain of a group's first layer are a multiple of `round_to`; a group that is
    narrower stays whole, and so may one that keeps all. `ignore` are patterns (`layer4.*`) of
    layers that keep all of their output channels, with the whole group these belong to. Groups
    without scores stay whole.
    """

    _: KW_ONLY
    round_to: Annotated[Count, "channels kept are multiples of this"] = 1
    ignore: Annotated[Sequence[Text], "layers that keep all outputs, e.g. [layer4.*]"] = ()

    def select(self, scored: Scored) -> Selected:
        """Find the widths; ConfigError where no group is left that may be narrowed."""
        scored, notes = self._open(scored)
        masks, describe = self._decide(scored)

        def answer(keep: ChannelMask) -> Selected:
            found = describe(keep)
            told = (*notes, *_misses(found.aims), *found.notes)
            return replace(found, notes=told, recount=answer)

        return answer(ChannelMask.of(scored.graph, masks))

    @abstractmethod
    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        """Masks for the groups that have scores, and what makes the answer of a choice."""

    def _open(self, scored: Scored) -> tuple[Scored, list[str]]:
        """The checked scores of the groups that may be narrowed, and a note on those without."""
        graph, scores = scored.graph, checked(scored.scores, scored.graph)
        closed = ignored(graph, self.ignore)
        found = {name: score for name, score in scores.items() if name not in closed}
        if not found:
            raise ConfigError(
                f"selection.ignore={[*self.ignore]} leaves no group to select from; "
                "take a pattern out"
            )
        names = [g.name for g in graph.groups if g.name not in scores and g.name not in closed]
        notes = [f"not scored, so kept whole: {listed(names, 4)}"] if names else []
        return replace(scored, scores=found), notes

    def _pool(self, scored: Scored) -> CandidateUnits:
        """The units of these groups, by these scores."""
        return CandidateUnits(scored.scores, scored.graph, self.min_keep, self.round_to)


class CandidateUnits:
    """The units of scored groups, best first within each; `scores` have the order of the graph.

    Per group: `names`, `widths` (how many units there are) and `least` (how many stay, whatever is
    asked). Flat, over all units: `units` (ids), `scores`, `group` (an index) and `stays` (whether
    it is protected).
    """

    def __init__(
        self, scores: Mapping[str, Tensor], graph: ChannelGraph, min_keep: int, round_to: int = 1
    ) -> None:
        stays = protected(scores, graph, min_keep)
        ids = {group.name: group.units for group in graph.groups}
        steps = [_step(graph, name, ids[name], round_to) for name in scores]
        ranks = [best_first(score, stays[name]).argsort() for name, score in scores.items()]
        self.names, self._step = [*scores], torch.tensor(steps)
        self.widths = torch.tensor([len(score) for score in scores.values()])
        self.group = torch.arange(len(steps)).repeat_interleave(self.widths)
        self.scores, self._rank = torch.cat(list(scores.values())), torch.cat(ranks)
        self.units = torch.cat([ids[name] for name in scores])
        self.stays = torch.cat([stays[name] for name in scores])
        self.least = self.up(self.count(self.stays))
        self._ids = graph.count

    def worst_first(self) -> Tensor:
        """Indices of all units, the lowest score first; of equal scores the later unit is first."""
        return self.scores.argsort(descending=True, stable=True).flip(0)

    def count(self, kept: Tensor) -> Tensor:
        """How many units of every group are True in a mask over all of them."""
        return torch.bincount(self.group[kept], minlength=len(self.widths))

    def up(self, counts: Tensor) -> Tensor:
        """The nearest counts that are allowed and not below these."""
        return ((counts + self._step - 1) // self._step * self._step).minimum(self.widths)

    def best(self, counts: Tensor) -> Tensor:
        """A mask over all units, True for the best of every group, so many as these counts."""
        return self._rank < counts[self.group]

    def masks(self, counts: Tensor) -> Masks:
        """The best units of every group, so many as the nearest count that is allowed."""
        return dict(zip(self.names, self._kept(counts).split(self.widths.tolist()), strict=True))

    def removed(self, counts: Tensor) -> Tensor:
        """The same as a mask over unit ids, True where a unit is removed."""
        return self.without(~self._kept(counts))

    def without(self, units: Tensor) -> Tensor:
        """A mask over all units of the pool (True: removed) as one over unit ids."""
        removed = torch.zeros(self._ids, dtype=torch.bool)
        removed[self.units] = units
        return removed

    def _kept(self, counts: Tensor) -> Tensor:
        near = (counts + self._step // 2) // self._step * self._step  # halves go up
        return self.best(near.minimum(self.widths).maximum(self.least))


def _step(graph: ChannelGraph, name: str, units: Tensor, round_to: int) -> int:
    """How many units make a multiple of `round_to` channels in the layer a group is named after.

    A unit may be several channels there, one in every part of a grouped convolution for instance.
    """
    if round_to == 1:
        return 1
    outs = graph.outs.get(name, units)
    own = outs[torch.isin(outs, units)]
    channels = len(own) // max(len(own.unique()), 1)
    return round_to // gcd(round_to, max(channels, 1))


def _misses(aims: Sequence[Aim]) -> list[str]:
    """Aims that are not met, and the tightest one where all are missed from below."""
    over = [f"{_against(aim)}: the nearest there is" for aim in aims if not aim.met]
    if over or not aims:
        return over
    tight = max(aims, key=lambda aim: aim.reached / aim.asked)
    return [_against(tight)] if tight.reached < 0.99 * tight.asked else []


def _against(aim: Aim) -> str:
    return f"asked to keep {aim.asked:.6g} of the {aim.name}, kept {aim.reached:.6g}"
