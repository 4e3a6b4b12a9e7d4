"""One threshold on the norms of all groups, searched for a share of the multiply-adds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError, listed
from prunekit.graph import ChannelMask
from prunekit.methods.hinge.cost import FoldedCost
from prunekit.schema import Share, SomeShare
from prunekit.selection.base import (
    SELECTIONS,
    Aim,
    Masks,
    Scored,
    Selected,
    Selection,
    best,
    checked,
    protected,
    unscored,
)

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel

NEAR = 0.005  # a share of MACs this near to the one asked for is met
_LISTED = 4


@SELECTIONS.register("threshold")
@dataclass(frozen=True)
class Threshold(Selection):
    """Keeps what is not below one threshold T (Li et al. 2020, section 3.4, Algorithm 2).

    `keep` is the share of multiply-adds, of the network before matrices were attached, that T is
    searched for: by bisection over all norms, of which the nearest share is taken, with what costs
    no more. Of every scored group at least the share `floor` stays, rounded up and never none, the
    largest ones. With `same_ratio` the second matrix of a block keeps the same share as the first,
    its largest ones, whatever T says.
    """

    keep: Annotated[SomeShare, "share of the multiply-adds without matrices that stays"] = 0.5
    _: KW_ONLY
    floor: Annotated[Share, "share of every group that stays at least, rounded up"] = 0.2
    same_ratio: Annotated[bool, "the second matrix of a block keeps the share of the first"] = False

    def at(
        self,
        threshold: float,
        scores: Mapping[str, Tensor],
        graph: ChannelGraph,
        cost: CostModel,
    ) -> ChannelMask:
        """What stays at one threshold: at 0 everything, above it nothing that is exactly zero."""
        return ChannelMask.of(graph, self._norms(scores, cost, graph).masks(threshold))

    def select(self, scored: Scored) -> Selected:
        """Find the nearest share of MACs; ConfigError where even the floor has more.

        Of two that are equally near the one with fewer MACs, of equal MACs the lowest threshold.
        """
        graph, cost = scored.graph, scored.cost
        self.check(scored.scores, graph, cost)
        norms = self._norms(scored.scores, cost, graph)
        levels = norms.levels()

        @cache
        def share(place: int) -> float:
            return _share(ChannelMask.of(graph, norms.masks(levels[place])), cost)

        def first(most: float) -> int:
            """The lowest of the levels, from which on no more than a share is kept."""
            return bisect_left(range(len(levels)), -most, key=lambda place: -share(place))

        below = first(self.keep)
        above = first(share(below - 1)) if below else below
        ends = {above, min(below, len(levels) - 1)}
        near = min(ends, key=lambda at: (round(abs(share(at) - self.keep), 12), share(at), at))

        def answer(keep: ChannelMask) -> Selected:
            return replace(self._answer(scored, norms, keep), recount=answer)

        return answer(ChannelMask.of(graph, norms.masks(levels[near])))

    def _answer(self, scored: Scored, norms: _Norms, keep: ChannelMask) -> Selected:
        """The share of MACs asked for and reached, the threshold, and what the floor held."""
        share = _share(keep, scored.cost)
        aim = Aim("MACs", self.keep, share, abs(share - self.keep) <= NEAR)
        notes = norms.told(keep)
        if not aim.met:
            notes.append(
                f"asked to keep {aim.asked:.6g} of the MACs, kept {aim.reached:.6g}: "
                "the nearest reachable by one threshold"
            )
        names = unscored(scored.scores, scored.graph)
        whole = [f"not scored, so kept whole: {listed(names, _LISTED)}"] if names else []
        return Selected(keep, (aim,), notes=(*whole, *notes))

    def check(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> None:
        """Raise ConfigError where no threshold leaves as little as `keep`; norms do not matter."""
        least = _share(self.at(math.inf, scores, graph, cost), cost)
        if least > self.keep + NEAR:
            asked = math.ceil(least * 1e4) / 1e4  # what is shown can be asked for
            raise ConfigError(
                f"selection.keep={self.keep} cannot be reached: selection.floor={self.floor} and "
                f"what has no scores leave {asked:.4g} of the MACs; ask for that, or lower "
                "selection.floor"
            )

    def _norms(self, scores: Mapping[str, Tensor], cost: CostModel, graph: ChannelGraph) -> _Norms:
        known = checked(scores, graph)
        stays = protected(known, graph, self.min_keep)
        least = {
            name: stays[name] | best(score, max(1, math.ceil(self.floor * len(score) - 1e-9)))
            for name, score in known.items()
        }
        return _Norms(known, least, self._pairs(known, cost) if self.same_ratio else {})

    def _pairs(self, scores: Mapping[str, Tensor], cost: CostModel) -> dict[str, str]:
        """Second group -> first group of every block of which both have scores."""
        pairs = cost.pairs if isinstance(cost, FoldedCost) else ()
        found = {second: first for first, second in pairs if {first, second} <= scores.keys()}
        if not found:
            raise ConfigError(
                "selection.same_ratio=true, but no block has two matrices with scores; attach some "
                "with placement=auto, or set it to false"
            )
        return found


@dataclass(frozen=True, eq=False)
class _Norms:
    """The norms of scored groups, what stays of them whatever T is, and which follow another."""

    scores: Mapping[str, Tensor]
    least: Masks
    leader: Mapping[str, str]

    def levels(self) -> list[float]:
        """All thresholds that differ: the distinct norms from the lowest on, and one above them."""
        return [*torch.cat([*self.scores.values()]).unique().tolist(), math.inf]

    def masks(self, threshold: float) -> Masks:
        """What stays; a superset of what stays at any higher threshold."""
        masks = {n: (score >= threshold) | self.least[n] for n, score in self.scores.items()}
        return masks | {name: self._follow(name, masks[by]) for name, by in self.leader.items()}

    def told(self, masks: Mapping[str, Tensor]) -> list[str]:
        """Up to where norms went, and how many groups the floor kept from losing more."""
        free = {n: score for n, score in self.scores.items() if n not in self.leader}
        went = torch.cat([score[~masks[name]] for name, score in free.items()])
        if not len(went):
            return []
        top = went.max()
        held = [name for name, score in free.items() if bool((score[masks[name]] <= top).any())]
        line = f"norms up to {float(top):.4g} went"
        if held:
            line += f", but for what the floor kept in {len(held)} of {len(free)} groups"
            line += f" ({listed(held, _LISTED)})"
        return [line]

    def _follow(self, name: str, kept: Tensor) -> Tensor:
        """The same share as of the mask `kept`, halves up, and no less than stays anyway."""
        score, least = self.scores[name], self.least[name]
        count = (2 * len(score) * int(kept.sum()) + len(kept)) // (2 * len(kept))
        return best(score, max(count, int(least.sum())), least)


def _share(keep: ChannelMask, cost: CostModel) -> float:
    return cost.macs(keep.removed) / cost.macs()
