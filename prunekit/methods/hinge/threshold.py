"""One threshold on the norms of all groups, searched for a share of the multiply-adds."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError, listed
from prunekit.graph import ChannelMask
from prunekit.methods.hinge.matrices import FoldedCost
from prunekit.rows import Rows
from prunekit.schema import NotNegative, Share, SomeShare
from prunekit.selection.base import (
    SELECTIONS,
    BudgetResult,
    Masks,
    Scored,
    Selected,
    Selection,
    mask_of_best,
    protect_units,
    unscored_groups,
    validate_scores,
)
from prunekit.solvers import Solver
from prunekit.targets import unit_scores
from prunekit.training.orders import StopRule, Training

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure import CostModel


NEAR = 0.005  # difference of the share of MACs that still meets the budget
_LISTED = 4


@SELECTIONS.register("threshold")
@dataclass(frozen=True)
class Threshold(Selection):
    """Keeps units whose score is not below one threshold T (Li et al. 2020, Algorithm 2).

    T is searched by bisection over all scores, which are norms, so that the share of multiply-adds
    is as near as possible to `keep`. The share is relative to the network before matrices were
    inserted. Every scored group keeps at least the share `floor` of its units, the best ones. With
    `same_ratio`, the second matrix of a block keeps the same share as the first, whatever T is.
    """

    keep: Annotated[SomeShare, "share to keep of the multiply-adds without matrices"] = 0.5
    _: KW_ONLY
    floor: Annotated[Share, "share that every group keeps, rounded up"] = 0.2
    same_ratio: Annotated[bool, "second matrices of blocks keep the share of the first"] = False

    def mask_at(
        self,
        threshold: float,
        scores: Mapping[str, Tensor],
        graph: ChannelGraph,
        cost: CostModel,
    ) -> ChannelMask:
        """Return what is kept at one threshold; at 0 that is everything."""
        return ChannelMask.of(graph, self._norms(scores, cost, graph).masks(threshold))

    def select(self, scored: Scored) -> Selected:
        """Find the nearest share of MACs; raises ConfigError if even the floor has more.

        Ties go to fewer MACs, then to the lowest threshold.
        """
        graph, cost = scored.graph, scored.cost
        self.check_reachable(scored.scores, graph, cost)
        norms = self._norms(scored.scores, cost, graph)
        levels = norms.levels()

        @cache
        def share_at(index: int) -> float:
            return _macs_share(ChannelMask.of(graph, norms.masks(levels[index])), cost)

        def first_within(limit: float) -> int:
            """Return the index of the lowest level at which at most this share is kept."""
            return bisect_left(range(len(levels)), -limit, key=lambda index: -share_at(index))

        below = first_within(self.keep)
        above = first_within(share_at(below - 1)) if below else below
        candidates = {above, min(below, len(levels) - 1)}
        nearest = min(
            candidates,
            key=lambda index: (round(abs(share_at(index) - self.keep), 12), share_at(index), index),
        )

        def result(keep: ChannelMask) -> Selected:
            return replace(self._result(scored, norms, keep), recount=result)

        return result(ChannelMask.of(graph, norms.masks(levels[nearest])))

    def _result(self, scored: Scored, norms: _Norms, keep: ChannelMask) -> Selected:
        """Return the share of MACs requested and achieved, with notes on T and on the floor."""
        share = _macs_share(keep, scored.cost)
        budget = BudgetResult("MACs", self.keep, share, abs(share - self.keep) <= NEAR)
        notes = norms.notes(keep)
        if not budget.satisfied:
            notes.append(
                f"asked to keep {budget.requested:.6g} of the MACs, kept {budget.achieved:.6g}: "
                "the nearest reachable by one threshold"
            )
        names = unscored_groups(scored.scores, scored.graph)
        unscored = [f"not scored, so kept whole: {listed(names, _LISTED)}"] if names else []
        return Selected(keep, (budget,), notes=(*unscored, *notes))

    def check_reachable(
        self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> None:
        """Raise ConfigError if no threshold leaves as little as `keep`, whatever the scores are."""
        least = _macs_share(self.mask_at(math.inf, scores, graph, cost), cost)
        if least > self.keep + NEAR:
            possible = math.ceil(least * 1e4) / 1e4  # rounded up, so that it can be requested
            raise ConfigError(
                f"selection.keep={self.keep} cannot be reached: selection.floor={self.floor} and "
                f"what has no scores leave {possible:.4g} of the MACs; ask for that, or lower "
                "selection.floor"
            )

    def _norms(self, scores: Mapping[str, Tensor], cost: CostModel, graph: ChannelGraph) -> _Norms:
        valid = validate_scores(scores, graph)
        protected = protect_units(valid, graph, self.min_keep)
        for name, score in valid.items():
            count = max(1, math.ceil(self.floor * len(score) - 1e-9))
            protected[name] = protected[name] | mask_of_best(score, count)
        return _Norms(valid, protected, self._leaders(valid, cost) if self.same_ratio else {})

    def _leaders(self, scores: Mapping[str, Tensor], cost: CostModel) -> dict[str, str]:
        """Return second group -> first group, of blocks with scores for both."""
        pairs: Sequence[tuple[str, str]] = getattr(cost, "pairs", ())  # of `FoldedCost`
        leaders = {second: first for first, second in pairs if {first, second} <= scores.keys()}
        if not leaders:
            raise ConfigError(
                "selection.same_ratio=true, but no block has two matrices with scores; attach some "
                "with placement=auto, or set it to false"
            )
        return leaders


@dataclass(frozen=True, eq=False)
class _Norms:
    """The norms of scored groups, the units protected from any threshold, and groups that follow.

    `leader` maps a group to the one whose share it keeps.
    """

    scores: Mapping[str, Tensor]
    protected: Masks
    leader: Mapping[str, str]

    def levels(self) -> list[float]:
        """Return all thresholds that differ: the distinct norms, ascending, and infinity."""
        return [*torch.unique(torch.cat([*self.scores.values()])).tolist(), math.inf]

    def masks(self, threshold: float) -> Masks:
        """Return what is kept; it contains what is kept at any higher threshold."""
        masks = {n: (score >= threshold) | self.protected[n] for n, score in self.scores.items()}
        return masks | {name: self._follow(name, masks[by]) for name, by in self.leader.items()}

    def notes(self, masks: Mapping[str, Tensor]) -> list[str]:
        """Describe the largest norm that was removed, and the groups that the floor affected."""
        free = {n: score for n, score in self.scores.items() if n not in self.leader}
        removed = torch.cat([score[~masks[name]] for name, score in free.items()])
        if not len(removed):
            return []
        top = removed.max()
        floored = [n for n, score in free.items() if bool((score[masks[n]] <= top).any())]
        line = f"norms up to {float(top):.4g} went"
        if floored:
            line += f", but for what the floor kept in {len(floored)} of {len(free)} groups"
            line += f" ({listed(floored, _LISTED)})"
        return [line]

    def _follow(self, name: str, kept: Tensor) -> Tensor:
        """Return the protected and the best units, in the same share as `kept` (halves up)."""
        score, protected = self.scores[name], self.protected[name]
        count = (2 * len(score) * int(kept.sum()) + len(kept)) // (2 * len(kept))
        return mask_of_best(score, max(count, int(protected.sum())), protected)


def _macs_share(keep: ChannelMask, cost: CostModel) -> float:
    return cost.macs(keep.removed) / cost.macs()


@dataclass(frozen=True)
class StopNearBudget(StopRule):
    """Stops sparse training when a small threshold would leave little more MACs than the budget.

    That is, at most `within` above `selection.keep`, with the floor and the same-ratio rule of the
    selection (Li et al. 2020, section 3.3). MACs are counted from masks; the network stays whole.
    """

    selection: Annotated[Threshold, "the selection whose budget counts"]
    threshold: Annotated[NotNegative, "rows with a smaller norm count as removed"] = 5e-3
    within: Annotated[NotNegative, "difference of the share of MACs at which it stops"] = 0.1

    def watch(
        self, training: Training, blocks: Sequence[Rows], solver: Solver
    ) -> Callable[[], tuple[dict[str, float], bool]]:
        """Return a function that returns the share of MACs, and whether to stop.

        Raises ConfigError before training if the budget cannot be reached.
        """
        cost = FoldedCost(training.model, training.graph)
        dense = cost.macs()
        scores = unit_scores(training.graph, blocks, solver.solution())
        self.selection.check_reachable(scores, training.graph, cost)

        def after_epoch() -> tuple[dict[str, float], bool]:
            scores = unit_scores(training.graph, blocks, solver.solution())
            keep = self.selection.mask_at(self.threshold, scores, training.graph, cost)
            share = cost.macs(keep.removed) / dense
            return {"macs_share": share}, share - self.selection.keep <= self.within

        return after_epoch
