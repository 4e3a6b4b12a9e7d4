"""The threshold rules of network slimming: the lowest share of all scales goes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.schema import Count, PartShare, SomeShare
from prunekit.selection.base import SELECTIONS, Aim, Masks, Scored, Selected
from prunekit.selection.emptied_layers import emptied_notes, fewest_left, first_emptied
from prunekit.selection.pool import CandidateUnits, Describe, FindsWidths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunekit.graph import ChannelMask

_NEXT = 3  # layers that a refusal names beside the emptied ones


@SELECTIONS.register("slimming")
@dataclass(frozen=True)
class Slimming(FindsWidths):
    """One threshold over all scored units, as network slimming prunes (Liu et al. 2017).

    `ratio` in [0, 1) is the share that goes: the one setting that says so, because the published
    runs are named by it. It counts the units that have a score and are not in `ignore`. With the
    criterion `bn_scale` those are the batch-norm scales, one per unit; a unit that several norms
    scale, as in a residual stream without channel selection, counts once, by their mean.

    `rule` is `exact`: of N units int(N * ratio) go, of equal scores the later one first; or
    `published`, the released code's: a unit stays if it is above the score at place int(N * ratio)
    in ascending order, so one more goes, and all that tie with it, zeros among them.

    `on_empty` says what happens where that leaves nothing of a layer: `error`; `keep_best`, which
    keeps the best `min_keep` units of its group and the best unit on each side of the layer; or
    `skip_block`, which lets the whole group go, for `cut` to remove the residual block around it.
    A group that keeps some units never has fewer than `min_keep`. Of no group goes more than the
    share `most`, half of it in the published runs of several passes. What is protected stays in
    addition: the threshold is not moved for it.
    """

    ratio: Annotated[PartShare, "share of all units that goes, as published"] = 0.5
    _: KW_ONLY
    rule: Annotated[
        Literal["exact", "published"], "published: as the released code, one unit more and ties"
    ] = "exact"
    on_empty: Annotated[
        Literal["error", "keep_best", "skip_block"], "where nothing would be left of a layer"
    ] = "error"
    most: Annotated[SomeShare, "share of a group that goes at most"] = 1.0
    min_keep: Annotated[Count, "units of every group that keeps any"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_empty == "skip_block" and self.rounds > 1:
            raise ConfigError(
                f"rounds={self.rounds} and on_empty=skip_block: between rounds "
                "there are no blocks to remove; give rounds=1, or on_empty=keep_best"
            )

    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        pool = self._pool(scored)
        above = self._above(pool)
        emptied = first_emptied(scored.graph, pool.without(~above))
        if emptied and self.on_empty == "error":
            raise self._refusal(pool, above, emptied)
        masks = pool.masks(pool.count(above | pool.stays))
        if self.on_empty == "skip_block":
            lives = dict(zip(pool.names, pool.count(above) > 0, strict=True))
            masks = {name: mask & lives[name] for name, mask in masks.items()}

        def answer(keep: ChannelMask) -> Selected:
            told = emptied_notes(scored.graph, keep, emptied, nearly=pool.names)
            return Selected(
                keep, (self._aim(keep, pool),), emptied, (*self._ties(pool, above), *told)
            )

        return masks, answer

    def _aim(self, keep: ChannelMask, pool: CandidateUnits) -> Aim:
        """The share of the scored units that should stay, and that does."""
        kept = torch.cat([keep[name] for name in pool.names])
        asked, reached = len(kept) - self._lowest(len(kept)), int(kept.sum())
        return Aim("channels", round(1 - self.ratio, 12), reached / len(kept), reached <= asked)

    def _lowest(self, units: int) -> int:
        """How many go; cut off, not rounded, as in the released code."""
        return int(units * self.ratio)

    def _above(self, pool: CandidateUnits) -> Tensor:
        """Which units of the pool stay, when nothing is protected but what `most` spares."""
        going = (pool.widths * self.most + 1e-9).long()  # 0.29 of 100 are 29, not 28.999...
        return self._by_rule(pool) | pool.best(pool.widths - going)

    def _by_rule(self, pool: CandidateUnits) -> Tensor:
        """Which units are above the threshold."""
        count = self._lowest(len(pool.scores))
        if self.rule == "published":
            return pool.scores > pool.scores.sort().values[count]
        stays = torch.ones(len(pool.scores), dtype=torch.bool)
        stays[pool.worst_first()[:count]] = False
        return stays

    def _refusal(self, pool: CandidateUnits, above: Tensor, empty: Sequence[str]) -> ConfigError:
        """What to say where a layer has no unit above the threshold."""
        kept = dict(zip(pool.names, above.split(pool.widths.tolist()), strict=True))
        rows = [row for row in fewest_left(kept) if row[0] not in empty and row[1] < row[2]]
        shares = [f"{name} keeps {n} of {full} ({n / full:.1%})" for name, n, full in rows[:_NEXT]]
        names = ", ".join(empty) if bool(above.any()) else f"all {len(pool.names)} groups"
        return ConfigError(
            f"selection.ratio={self.ratio} would leave nothing of {names}, whose "
            f"scores are not above the threshold {float(pool.scores[~above].max()):.3g}"
            + (f"; next, {', '.join(shares)}" if shares else "")
            + "; lower it, or give selection.on_empty=keep_best, or skip_block to remove the "
            "residual blocks around them"
        )

    def _ties(self, pool: CandidateUnits, above: Tensor) -> list[str]:
        """Where equal scores, above all zeros, make the rule stop short or go on."""
        units, count = len(pool.scores), self._lowest(len(pool.scores))
        zeros, gone = int((pool.scores == 0).sum()), int((~above).sum())
        asked = f"selection.ratio={self.ratio} asks for {count} of {units} units"
        if gone > count + 1:
            level = float(pool.scores.sort().values[count])
            return [f"{asked}; {gone} go, because so many are not above {level:.3g}"]
        if zeros > gone:
            return [f"{asked}; {zeros} score exactly zero, and selection=zeros takes just those"]
        return []
