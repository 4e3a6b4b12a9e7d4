"""Units of a dense network in terms of a narrower one that was made of it, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunekit.criteria import Scores
from prunekit.graph import ChannelGraph, ChannelMask


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
