"""Layers that a choice leaves without channels, or with very few."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from prunekit.errors import listed

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph, ChannelMask

_FEW = 0.1  # a group that keeps less than this share is reported
_LISTED = 6


def find_emptied_layers(graph: ChannelGraph, removed: Tensor) -> tuple[str, ...]:
    """Return the layers that lose all of their inputs or outputs; `removed` is over unit ids.

    Layers that are empty only because their units belong to an emptied group are not listed beside
    the layer that the group is named after.
    """
    layers = graph.emptied(removed)
    groups = [group for group in graph.groups if bool(removed[group.units].all())]
    sources = [group for group in groups if group.name in layers]
    covered = removed.new_zeros(removed.shape)
    for group in sources:
        covered[group.units] = True
    others = [
        name
        for name in layers
        if not bool(covered[graph.ins[name]].any() or covered[graph.outs[name]].any())
    ]
    return (*(group.name for group in sources), *others)


def describe_emptied_layers(
    graph: ChannelGraph, keep: ChannelMask, emptied: Sequence[str], nearly: Collection[str]
) -> list[str]:
    """Return sentences on emptied layers, and on groups in `nearly` that keep very few units."""
    remaining = {name: _channels_left(graph, keep.removed, name) for name in emptied}
    rescued = [name for name, (kept, _) in remaining.items() if kept]
    empty = [name for name, (kept, _) in remaining.items() if not kept]
    notes = []
    if rescued:
        shares = listed([_share(name, *remaining[name]) for name in rescued], _LISTED)
        notes.append(f"the scores alone would have emptied layers; {shares}, which is protected")
    if empty:
        notes.append(f"nothing is left of {listed(empty, _LISTED)}")
    shares_by_group = smallest_shares({name: mask for name, mask in keep.items() if name in nearly})
    few = [
        _share(name, kept, full)
        for name, kept, full in shares_by_group
        if name not in remaining and 0 < kept < _FEW * full
    ]
    if few:
        notes.append(f"nearly empty: {listed(few, _LISTED)}")
    return notes


def smallest_shares(masks: Mapping[str, Tensor]) -> list[tuple[str, int, int]]:
    """Return name, units kept and all units of every group, the smallest share first."""
    counts = [(name, int(mask.sum()), len(mask)) for name, mask in masks.items()]
    return sorted(counts, key=lambda count: count[1] / count[2])


def _channels_left(graph: ChannelGraph, removed: Tensor, name: str) -> tuple[int, int]:
    """Return channels kept and all channels, of the side (in or out) of the smaller share."""
    sides = [side for side in (graph.outs[name], graph.ins[name]) if bool(side.any())]
    counts = [(int((~removed[side]).sum()), len(side)) for side in sides]
    return min(counts, key=lambda count: count[0] / count[1])


def _share(name: str, kept: int, full: int) -> str:
    return f"{name} keeps {kept} of {full}"
