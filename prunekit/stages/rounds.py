"""Pruning in rounds: score, cut a part of what has to go, train, and again until the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunekit.criteria import Criterion, Scores
from prunekit.data import Data
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.pruning import absorbs
from prunekit.selection import Masks, Selection
from prunekit.surgery.cut import Cut, cut

CHECKED = 64  # images that every cut is checked on


@dataclass
class Rounds:
    """A network on its way to what a selection asks for.

    All rounds decide on the dense network: its `graph`, its `cost`, a score for each of its units,
    where units that are gone score lowest. So the last one ends exactly where one cut with the same
    scores would, and no selection has to know of rounds.
    """

    model: nn.Module
    graph: ChannelGraph
    selection: Selection
    criterion: Criterion
    cost: CostModel
    data: Data
    device: str
    absorb: bool | str
    over_norms: bool = False
    scores: Scores = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.keep = {g.name: torch.ones(len(g.units), dtype=torch.bool) for g in self.graph.groups}
        self._now = self.graph

    def run(self, train: Callable[[nn.Module, int], None]) -> Masks:
        """Go all the way; `train(model, round)` is called between rounds. Returns what is kept."""
        for left in range(self.selection.rounds, 0, -1):
            self._once(left)
            if left > 1:
                train(self.model, self.selection.rounds - left + 1)
                example = self.data.example.to(self.device)
                self._now = ChannelGraph.trace(self.model, example, over_norms=self.over_norms)
        return self.keep

    @property
    def absorbed(self) -> bool:
        """Whether the last cut absorbed constants."""
        return self.cuts[-1].absorbed is not None

    def again(self, absorb: bool) -> nn.Module:
        """What the last cut would have made with constants absorbed, or dropped."""
        return cut(*self._last, absorb=absorb, check=False).model

    def _once(self, left: int) -> None:
        """Remove the lowest-scored of the units that have to go, one of `left` equal parts."""
        place = self._places()
        self.scores = self._lifted(
            self.criterion.scores(self.model, self._now, self.data, self.device), place
        )
        goal = self.selection.choose(self.scores, self.graph, self.cost)
        keep = {n: part_of(goal[n], self.keep[n], self.scores.get(n), left) for n in self.keep}
        batch = self.data.inputs(CHECKED).to(self.device)
        going = {name: ~mask for name, mask in keep.items()}
        self._last = (self.model, self._now, self._lowered(self.graph.drop(going), place), batch)
        made = cut(
            *self._last,
            absorb=absorbs(self.absorb, self.scores, keep),
            maps=self.absorb == "maps" and left == 1,  # they rename layers, so only at the end
        )
        self.cuts.append(made)
        self.model, self.keep = made.model, self._kept(made.keep, place)

    def _places(self) -> Tensor:
        """For every unit id of the dense network the one in the network as it is now; -1: gone."""
        gone = self.graph.drop({name: ~mask for name, mask in self.keep.items()})
        place = torch.full((self.graph.count,), -1)
        for name, units in self.graph.outs.items():
            if name in self._now.outs:  # it may have gone with its block
                place[units[~gone[units]]] = self._now.outs[name]
        return place

    def _kept(self, keep: Mapping[str, Tensor], place: Tensor) -> Masks:
        """Masks over the network as it is now as masks over the dense one."""
        gone = self._now.drop({name: ~mask for name, mask in keep.items()})
        stays = (place >= 0) & ~gone[place.clamp_min(0)]
        return {group.name: stays[group.units] for group in self.graph.groups}

    def _lifted(self, scores: Mapping[str, Tensor], place: Tensor) -> Scores:
        """Scores of the dense network's units: gone ones below all, unscored groups left out."""
        if self._now is self.graph:
            return dict(scores)
        now = torch.full((self._now.count,), torch.nan, dtype=torch.float64)
        for group in self._now.groups:
            if group.name in scores:
                now[group.units] = scores[group.name].double().cpu()
        found = {}
        lowest = float(torch.cat([*scores.values()]).min())
        below = 0.0 if lowest > 0 else lowest - max(abs(lowest) * 1e-9, 1e-300)
        for group in self.graph.groups:
            at = place[group.units]
            score = torch.where(at < 0, below, now[at.clamp_min(0)])
            known = score[~score.isnan()]
            if bool((at >= 0).any()) and bool((~score[at >= 0].isnan()).any()):
                found[group.name] = score.nan_to_num(float(known.max()))
        return found

    def _lowered(self, drop: Tensor, place: Tensor) -> Masks:
        """What the groups of the network as it is now keep."""
        keep = torch.ones(self._now.count, dtype=torch.bool)
        alive = place >= 0
        keep[place[alive & drop]] = False
        return {group.name: keep[group.units] for group in self._now.groups}


def part_of(goal: Tensor, keep: Tensor, score: Tensor | None, left: int) -> Tensor:
    """The mask a round ends with: of what must still go the lowest `1 / left`, halves go up."""
    going = (keep & ~goal).nonzero().flatten()
    if score is None or not len(going):
        return keep
    now = int(len(going) / left + 0.5)
    stays = keep.clone()
    stays[going[score[going].argsort(stable=True)[:now]]] = False
    return stays
