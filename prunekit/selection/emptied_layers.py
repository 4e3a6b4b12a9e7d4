"""Layers that a choice leaves with nothing, or with next to nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from prunekit.errors import listed

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph, ChannelMask

_NEARLY = 0.1  # of its channels: a layer that keeps less is told of
_LISTED = 6


def first_emptied(graph: ChannelGraph, removed: Tensor) -> tuple[str, ...]:
    """The layers that lose all of a side, without those that are empty because a named one is.

    `removed` is a mask over unit ids.
    """
    layers = graph.emptied(removed)
    wholly = [group for group in graph.groups if bool(removed[group.units].all())]
    makers = [group for group in wholly if group.name in layers]
    known = removed.new_zeros(removed.shape)
    for group in makers:
        known[group.units] = True
    others = [
        name
        for name in layers
        if not bool(known[graph.ins[name]].any() or known[graph.outs[name]].any())
    ]
    return (*(group.name for group in makers), *others)


def emptied_notes(
    graph: ChannelGraph, keep: ChannelMask, emptied: Sequence[str], nearly: Collection[str]
) -> list[str]:
    """What a person should know of emptied layers, and of groups in `nearly` that nearly are."""
    left = {name: _left(graph, keep.removed, name) for name in emptied}
    rescued = [name for name, (kept, _) in left.items() if kept]
    empty = [name for name, (kept, _) in left.items() if not kept]
    notes = []
    if rescued:
        shares = listed([_share(name, *left[name]) for name in rescued], _LISTED)
        notes.append(f"the scores alone would have emptied layers; {shares}, which is protected")
    if empty:
        notes.append(f"nothing is left of {listed(empty, _LISTED)}")
    few = fewest_left({name: mask for name, mask in keep.items() if name in nearly})
    few = [row for row in few if row[0] not in left and 0 < row[1] < _NEARLY * row[2]]
    if few:
        notes.append(f"nearly empty: {listed([_share(*row) for row in few], _LISTED)}")
    return notes


def fewest_left(masks: Mapping[str, Tensor]) -> list[tuple[str, int, int]]:
    """Name, units kept and units there were of every group, the smallest share first."""
    rows = [(name, int(mask.sum()), len(mask)) for name, mask in masks.items()]
    return sorted(rows, key=lambda row: row[1] / row[2])


def _left(graph: ChannelGraph, removed: Tensor, name: str) -> tuple[int, int]:
    """Channels kept and there were, on the side of a layer that keeps the smaller share."""
    sides = [side for side in (graph.outs[name], graph.ins[name]) if bool(side.any())]
    counts = [(int((~removed[side]).sum()), len(side)) for side in sides]
    return min(counts, key=lambda count: count[0] / count[1])


def _share(name: str, kept: int, full: int) -> str:
    return f"{name} keeps {kept} of {full}"
