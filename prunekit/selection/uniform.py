"""Selections that decide group by group: zeros go, or a share stays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch

from prunekit.errors import listed
from prunekit.schema import SomeShare
from prunekit.selection.base import SELECTIONS, Masks, Scored, Selected
from prunekit.selection.patterns import assigned
from prunekit.selection.pool import CandidateUnits, Describe, FindsWidths


@SELECTIONS.register("zeros")
@dataclass(frozen=True)
class Zeros(FindsWidths):
    """Drops the units whose score is exactly zero, as solvers with a proximal map leave them.

    Of a group that is all zero the first units stay in place of the best. With `round_to` some
    zeros stay, so that nothing else goes.
    """

    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        sizes = {name: score.abs() for name, score in scored.scores.items()}
        pool = self._pool(replace(scored, scores=sizes))
        return pool.masks(pool.up(pool.count((pool.scores != 0) | pool.stays))), Selected


@SELECTIONS.register("per_layer")
@dataclass(frozen=True)
class PerLayer(FindsWidths):
    """Keeps the same share of every group, rounded to the nearest count.

    `layers` gives other shares to groups with a layer that a pattern matches, the first match
    counts: `{"layer1.*": 0.8}`.
    """

    keep: Annotated[SomeShare, "share of every group that stays"] = 0.5
    layers: Annotated[
        Mapping[str, SomeShare], "other shares by pattern of layers, e.g. {layer1.*: 0.8}"
    ] = field(default_factory=dict)

    def _decide(self, scored: Scored) -> tuple[Masks, Describe]:
        pool = self._pool(scored)
        asked = self._asked(pool, scored)
        notes = _below_least(pool, asked)
        return pool.masks(asked), lambda keep: Selected(keep, notes=notes)

    def _asked(self, pool: CandidateUnits, scored: Scored) -> torch.Tensor:
        """How many units every group should have; halves go up."""
        other = assigned(scored.graph, self.layers)
        keep = torch.tensor([other.get(n, self.keep) for n in pool.names], dtype=torch.float64)
        return (keep * pool.widths + 0.5).floor().long()


def _below_least(pool: CandidateUnits, asked: torch.Tensor) -> tuple[str, ...]:
    """Which groups were asked for less than the least that they keep."""
    below = (asked < pool.least).tolist()
    names = [name for name, low in zip(pool.names, below, strict=True) if low]
    who = "every group keeps" if len(names) == len(below) else f"{listed(names, 4)} keep"
    return (f"{who} the least width: the share is below it",) if names else ()
