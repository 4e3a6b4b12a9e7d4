"""The threshold rules of network slimming, which remove the units with the lowest scales."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.schema import Count, PartShare, SomeShare
from prunekit.selection.base import SELECTIONS, BudgetResult, Masks, Scored, Selected
from prunekit.selection.candidates import AdaptiveSelection, CandidateUnits, ResultFactory
from prunekit.selection.emptied_layers import (
    describe_emptied_layers,
    find_emptied_layers,
    smallest_shares,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunekit.graph import ChannelMask

_NEXT = 3  # further layers that an error message names beside the emptied ones


@SELECTIONS.register("slimming")
@dataclass(frozen=True)
class Slimming(AdaptiveSelection):
    """Removes the units below one threshold over all scores (network slimming, Liu et al. 2017).

    `ratio` is the share of units to remove; published runs are named by it. It counts the units
    that have a score and are not in `ignore`. With the criterion `bn_scale` these are the
    batch-norm scales, one per unit; a unit that several norms scale, as in a residual stream
    without channel selectors, counts once, by their mean.

    With the rule `exact`, int(N * ratio) of N units are removed; of equal scores the later unit is
    removed first. With `published`, as in the released code, a unit is kept if its score is above
    the one at index int(N * ratio) in ascending order. That removes one unit more, and all that
    have the same score, such as zeros.

    `on_empty` says what to do if that removes all units of a layer: `error`; `keep_best`, which
    keeps the best `min_keep` units of its group and the best unit on each side of the layer; or
    `skip_block`, which removes the whole group, and with it the residual block. A group that keeps
    any units keeps at least `min_keep`. `most` is an upper bound of the share that is removed from
    any group (0.5 in the published multi-pass runs). Protected units are kept in addition to those
    above the threshold, which is not raised to compensate.
    """

    ratio: Annotated[PartShare, "share of all units to remove, as published"] = 0.5
    _: KW_ONLY
    rule: Annotated[
        Literal["exact", "published"], "published: as the released code, one unit more and ties"
    ] = "exact"
    on_empty: Annotated[
        Literal["error", "keep_best", "skip_block"], "what to do if a layer would lose all units"
    ] = "error"
    most: Annotated[SomeShare, "largest share to remove from any group"] = 1.0
    min_keep: Annotated[Count, "units of every group that keeps any"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_empty == "skip_block" and self.rounds > 1:
            raise ConfigError(
                f"rounds={self.rounds} and on_empty=skip_block: between rounds "
                "there are no blocks to remove; give rounds=1, or on_empty=keep_best"
            )

    @property
    def reduction(self) -> str:
        """The share to remove, if it is not zero."""
        return f"selection.ratio={self.ratio}" if self.ratio > 0 else ""

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        pool = self._pool(scored)
        above = self._above_threshold(pool)
        emptied = find_emptied_layers(scored.graph, pool.unit_mask(~above))
        if emptied and self.on_empty == "error":
            raise self._refusal(pool, above, emptied)
        masks = pool.masks(pool.count(above | pool.protected))
        if self.on_empty == "skip_block":
            nonempty = dict(zip(pool.names, pool.count(above) > 0, strict=True))
            masks = {name: mask & nonempty[name] for name, mask in masks.items()}

        def result(keep: ChannelMask) -> Selected:
            layers = describe_emptied_layers(scored.graph, keep, emptied, nearly=pool.names)
            notes = (*self._tie_notes(pool, above), *layers)
            return Selected(keep, (self._budget(keep, pool),), emptied, notes)

        return masks, result

    def _budget(self, keep: ChannelMask, pool: CandidateUnits) -> BudgetResult:
        """Return the requested and the achieved share of scored units that are kept."""
        kept = torch.cat([keep[name] for name in pool.names])
        units, count = len(kept), int(kept.sum())
        satisfied = count <= units - self._removal_count(units)
        return BudgetResult("channels", round(1 - self.ratio, 12), count / units, satisfied)

    def _removal_count(self, units: int) -> int:
        """Return how many units to remove, rounded down as in the released code."""
        return int(units * self.ratio)

    def _above_threshold(self, pool: CandidateUnits) -> Tensor:
        """Return a mask of the units above the threshold, or best of a group because of `most`."""
        removable = (pool.widths * self.most + 1e-9).long()  # 0.29 of 100 is 29, not 28.999...
        return self._by_rule(pool) | pool.mask_of_best(pool.widths - removable)

    def _by_rule(self, pool: CandidateUnits) -> Tensor:
        """Return a mask of the units above the threshold."""
        count = self._removal_count(len(pool.scores))
        if self.rule == "published":
            return pool.scores > pool.scores.sort().values[count]
        kept = torch.ones(len(pool.scores), dtype=torch.bool)
        kept[pool.worst_first()[:count]] = False
        return kept

    def _refusal(self, pool: CandidateUnits, above: Tensor, empty: Sequence[str]) -> ConfigError:
        """Return the error for layers without a unit above the threshold."""
        kept = dict(zip(pool.names, torch.split(above, pool.widths.tolist()), strict=True))
        shares = [
            f"{name} keeps {count} of {full} ({count / full:.1%})"
            for name, count, full in smallest_shares(kept)
            if name not in empty and count < full
        ]
        names = ", ".join(empty) if bool(above.any()) else f"all {len(pool.names)} groups"
        return ConfigError(
            f"selection.ratio={self.ratio} would leave nothing of {names}, whose "
            f"scores are not above the threshold {float(pool.scores[~above].max()):.3g}"
            + (f"; next, {', '.join(shares[:_NEXT])}" if shares else "")
            + "; lower it, or give selection.on_empty=keep_best, or skip_block to remove the "
            "residual blocks around them"
        )

    def _tie_notes(self, pool: CandidateUnits, above: Tensor) -> list[str]:
        """Return a note if equal scores, in particular zeros, change how many are removed."""
        units, count = len(pool.scores), self._removal_count(len(pool.scores))
        zeros, removed = int((pool.scores == 0).sum()), int((~above).sum())
        request = f"selection.ratio={self.ratio} asks for {count} of {units} units"
        if removed > count + 1:
            level = float(pool.scores.sort().values[count])
            return [f"{request}; {removed} go, because so many are not above {level:.3g}"]
        if zeros > removed:
            return [f"{request}; {zeros} score exactly zero, and selection=zeros takes just those"]
        return []
