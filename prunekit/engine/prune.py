"""Prune a traced network: score, select, cut, check, in one round or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from prunekit.criteria import Criterion, Scores
from prunekit.data import Data
from prunekit.engine.traced import CutOptions, Traced
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.measure import CostModel
from prunekit.measure.latency_table import Track
from prunekit.selection import Scored, Selected, Selection
from prunekit.surgery import Edit
from prunekit.surgery.cut import Cut


@dataclass(frozen=True, eq=False)
class Narrowed:
    """Where the units of the `dense` network are in the one that is left, `now`.

    `keep` says what the dense network has kept of them. While nothing is removed both are one.
    """

    dense: ChannelGraph
    now: ChannelGraph
    keep: ChannelMask

    @cached_property
    def _place(self) -> Tensor:
        """For every unit id of the dense network the one in the network as it is now; -1: gone."""
        place = torch.full((self.dense.count,), -1)
        for name, units in self.dense.outs.items():
            if name in self.now.outs:  # it may have gone with its block
                place[units[~self.keep.removed[units]]] = self.now.outs[name]
        return place

    def to_dense(self, keep: ChannelMask) -> ChannelMask:
        """What the dense network keeps where the present one keeps this."""
        place = self._place
        stays = (place >= 0) & ~keep.removed[place.clamp_min(0)]
        return ChannelMask.of(self.dense, {g.name: stays[g.units] for g in self.dense.groups})

    def to_now(self, keep: Mapping[str, Tensor]) -> ChannelMask:
        """What the present network keeps where the dense one keeps this."""
        place, removed = self._place, ChannelMask.of(self.dense, keep).removed
        stays = torch.ones(self.now.count, dtype=torch.bool)
        stays[place[(place >= 0) & removed]] = False
        return ChannelMask.of(self.now, {g.name: stays[g.units] for g in self.now.groups})

    def dense_scores(self, scores: Scores) -> Scores:
        """Scores of the dense network's units: gone ones below all, unscored groups left out."""
        if self.now is self.dense:
            return dict(scores)
        now = torch.full((self.now.count,), torch.nan, dtype=torch.float64)
        for group in self.now.groups:
            if group.name in scores:
                now[group.units] = scores[group.name].double().cpu()
        lowest = float(torch.cat([*scores.values()]).min())
        below = 0.0 if lowest > 0 else lowest - max(abs(lowest) * 1e-9, 1e-300)
        lifted = {}
        for group in self.dense.groups:
            place = self._place[group.units]
            score = torch.where(place < 0, below, now[place.clamp_min(0)])
            known = score[~score.isnan()]
            if bool((place >= 0).any()) and bool((~score[place >= 0].isnan()).any()):
                lifted[group.name] = score.nan_to_num(float(known.max()))
        return lifted


Tune = Callable[[nn.Module, int], None]  # trains the network, in place, after a round


@dataclass(frozen=True, eq=False)
class Pruning:
    """How a network was pruned: the dense one, the scores of its units, the choice, the cuts.

    `selected` speaks of the dense network and of what is left in the end. `last` is the network
    that the last of the `cuts` was made of, and `step` what it kept of that.
    """

    dense: Traced
    scores: Scores
    selected: Selected
    cost: CostModel
    cuts: tuple[Cut, ...]
    last: Traced
    step: ChannelMask

    @property
    def model(self) -> nn.Module:
        """The narrow network."""
        return self.cuts[-1].model

    @property
    def keep(self) -> ChannelMask:
        """What is kept of the dense network."""
        return self.selected.keep

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was done to the dense network, in order."""
        return tuple(edit for made in self.cuts for edit in made.edits)

    @property
    def absorbed(self) -> bool:
        """Whether the last cut absorbed constants."""
        return self.cuts[-1].absorbed is not None

    def with_constants(self, absorb: bool) -> nn.Module:
        """What the last cut would have left with constants absorbed, or dropped."""
        if absorb == self.absorbed:
            return self.model
        return self.last.cut(self.step, absorb=absorb, check=False).model


def prune(
    dense: Traced,
    criterion: Criterion,
    selection: Selection,
    options: CutOptions,
    data: Data | None = None,
    tune: Tune | None = None,
    track: Track | None = None,
) -> Pruning:
    """Score, select and cut a network, of which the dense one stays as it is.

    A selection of several rounds removes a part in each, calls `tune(model, round)` in between and
    scores the network anew. All rounds decide on the dense network, where units that are gone score
    lowest: so the last one ends exactly where one cut with the same scores would.
    Raises ConfigError for what the selection cannot do, SurgeryError for a cut that does not fit.
    """
    cost, now, keep, cuts = dense.cost(track), dense, ChannelMask.all(dense.graph), []
    for left in range(selection.rounds, 0, -1):
        units = Narrowed(dense.graph, now.graph, keep)
        scores = units.dense_scores(now.scores(criterion, data))
        selected = selection.select(Scored(scores, dense.graph, cost, criterion.comparable))
        goal = {n: _part(selected.keep[n], keep[n], scores.get(n), left) for n in keep}
        step, last = units.to_now(goal), now
        cuts.append(_cut(now, step, options, options.absorbs(scores, goal), final=left == 1))
        keep = units.to_dense(cuts[-1].keep)
        if left > 1:
            assert tune is not None, "several rounds train in between"
            tune(cuts[-1].model, selection.rounds - left + 1)
            now = dense.narrowed(cuts[-1].model)
    return Pruning(dense, scores, selected.after(keep), cost, tuple(cuts), last, step)


def cut_once(
    traced: Traced, keep: Mapping[str, Tensor], scores: Scores, options: CutOptions
) -> Cut:
    """One cut to given units, as `prune` makes it in its last round."""
    whole = ChannelMask.of(traced.graph, keep)
    return _cut(traced, whole, options, options.absorbs(scores, whole), final=True)


def _cut(traced: Traced, keep: ChannelMask, options: CutOptions, absorb: bool, final: bool) -> Cut:
    """A cut; biases by position rename layers, so they are made at the end only."""
    maps = options.maps and final
    return traced.cut(keep, absorb=absorb, check=options.check, maps=maps)


def _part(goal: Tensor, keep: Tensor, score: Tensor | None, left: int) -> Tensor:
    """The mask a round ends with: of what must still go the lowest `1 / left`, halves go up."""
    going = (keep & ~goal).nonzero().flatten()
    if score is None or not len(going):
        return keep
    now = int(len(going) / left + 0.5)
    stays = keep.clone()
    stays[going[score[going].argsort(stable=True)[:now]]] = False
    return stays
