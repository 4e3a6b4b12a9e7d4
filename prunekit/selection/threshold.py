"""One threshold on the norms of all groups, searched for a share of the multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunekit.checks import choice, number
from prunekit.errors import ConfigError
from prunekit.selection.base import (
    Aim,
    Masks,
    Selection,
    best,
    checked,
    gone,
    protected,
    untouched,
)

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel

NEAR = 0.005  # a share of MACs this near to the one asked for is met


@dataclass(frozen=True)
class Threshold(Selection):
    """Keeps what is not below one threshold T (Li et al. 2020, section 3.4, Algorithm 2).

    `keep` is the share of multiply-adds, of the network before matrices were attached, that T is
    searched for: by bisection over the norms that there are, of which the nearest share is taken.
    Of every scored group at least the share `floor` stays, rounded up, the largest ones. With
    `same_ratio` the second matrix of a block keeps the same share as the first, its largest ones,
    whatever T says.
    """

    keep: float
    _: KW_ONLY
    floor: float = 0.2
    same_ratio: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        number("selection.keep", self.keep, above=0, at_most=1)
        number("selection.floor", self.floor, at_least=0, at_most=1)
        choice("selection.same_ratio", self.same_ratio, (True, False))

    def at(
        self,
        threshold: float,
        scores: Mapping[str, Tensor],
        graph: ChannelGraph,
        cost: CostModel,
    ) -> Masks:
        """What stays at one threshold."""
        scores = checked(scores, graph)
        return self._at(threshold, scores, graph, cost) | untouched(scores, graph)

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """The masks whose share of MACs is nearest; ConfigError where even the floor has more."""
        return self.at(self._search(scores, graph, cost), scores, graph, cost)

    def aims(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[Aim, ...]:
        """The share asked for and the one that the masks have."""
        share = _share(masks, graph, cost)
        return (Aim("MACs", self.keep, share, abs(share - self.keep) <= NEAR),)

    def _search(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> float:
        """Of all norms, and one above them, the threshold whose share is nearest to `keep`."""
        known = checked(scores, graph)
        levels = torch.cat([*known.values()]).unique().tolist()
        levels.append(math.inf)
        shares: dict[float, float] = {}

        def share(place: int) -> float:
            level = levels[place]
            if level not in shares:
                masks = self._at(level, known, graph, cost)
                shares[level] = _share(masks, graph, cost)
            return shares[level]

        low, high = 0, len(levels) - 1
        if share(high) > self.keep + NEAR:
            raise ConfigError(
                f"selection.keep={self.keep} is below {share(high):.3f}, what selection.floor="
                f"{self.floor} leaves of the MACs; lower the floor, or ask for more"
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if share(middle) > self.keep else (low, middle)
        share(low)
        return min(shares, key=lambda level: (abs(shares[level] - self.keep), shares[level]))

    def _at(
        self, threshold: float, scores: dict[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> Masks:
        stays = protected(scores, graph, self.min_keep)
        masks = {}
        for name, score in scores.items():
            least = best(score, math.ceil(self.floor * len(score)))
            masks[name] = (score >= threshold) | least | stays[name]
        for first, second in self._pairs(cost) if self.same_ratio else ():
            if first in masks and second in masks:
                share = int(masks[first].sum()) / len(masks[first])
                count = max(1, int(share * len(masks[second]) + 0.5))
                masks[second] = best(scores[second], count, stays[second])
        return masks

    def _pairs(self, cost: CostModel) -> tuple[tuple[str, str], ...]:
        pairs = getattr(cost, "pairs", ())
        if not pairs:
            raise ConfigError(
                "selection.same_ratio=true, but no block has two matrices; set it to false"
            )
        return tuple(pairs)


def _share(masks: Masks, graph: ChannelGraph, cost: CostModel) -> float:
    return cost.macs(gone(graph, masks)) / cost.macs()
