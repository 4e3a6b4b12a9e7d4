"""Layers that a choice leaves with nothing, or with next to nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from prunekit.errors import listed
from prunekit.selection.base import Masks, gone

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

_NEARLY = 0.1  # of its channels: a layer that keeps less is told of
_LISTED = 6


def first_emptied(graph: ChannelGraph, drop: Tensor) -> tuple[str, ...]:
    """The layers that `drop` empties, without those that are empty because a named one is."""
    layers = graph.emptied(drop)
    wholly = [group for group in graph.groups if bool(drop[group.units].all())]
    makers = [group for group in wholly if group.name in layers]
    told = drop.new_zeros(drop.shape)
    for group in makers:
        told[group.units] = True
    others = [
        name
        for name in layers
        if not bool(told[graph.ins[name]].any() or told[graph.outs[name]].any())
    ]
    return (*(group.name for group in makers), *others)


def told(
    graph: ChannelGraph, masks: Masks, collapsed: Sequence[str], nearly: Collection[str]
) -> list[str]:
    """What a person should know of collapsed layers, and of groups in `nearly` that nearly are."""
    drop = gone(graph, masks)
    left = {name: _left(graph, drop, name) for name in collapsed}
    rescued = [name for name, (kept, _) in left.items() if kept]
    emptied = [name for name, (kept, _) in left.items() if not kept]
    notes = []
    if rescued:
        found = listed([_share(name, *left[name]) for name in rescued], _LISTED)
        notes.append(f"the scores alone would have emptied layers; {found}, which is protected")
    if emptied:
        notes.append(f"nothing is left of {listed(emptied, _LISTED)}")
    few = fewest_left({name: mask for name, mask in masks.items() if name in nearly})
    few = [row for row in few if row[0] not in left and 0 < row[1] < _NEARLY * row[2]]
    if few:
        notes.append(f"nearly empty: {listed([_share(*row) for row in few], _LISTED)}")
    return notes


def fewest_left(masks: Masks) -> list[tuple[str, int, int]]:
    """Name, units kept and units there were of every group, the smallest share first."""
    rows = [(name, int(mask.sum()), len(mask)) for name, mask in masks.items()]
    return sorted(rows, key=lambda row: row[1] / row[2])


def _left(graph: ChannelGraph, drop: Tensor, name: str) -> tuple[int, int]:
    """Channels kept and there were, on the side of a layer that keeps the smaller share."""
    sides = [side for side in (graph.outs[name], graph.ins[name]) if bool(side.any())]
    counts = [(int((~drop[side]).sum()), len(side)) for side in sides]
    return min(counts, key=lambda count: count[0] / count[1])


def _share(name: str, kept: int, full: int) -> str:
    return f"{name} keeps {kept} of {full}"
