"""One cut of a network: narrow a copy, prove it by numbers, absorb what removed channels emit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Example
from prunekit.graph.wrappers import renew
from prunekit.modes import duplicate, random_states_kept, unchanged
from prunekit.surgery.bias_compensation import Absorbed, branch_constants
from prunekit.surgery.bias_compensation import absorb as absorb_constants
from prunekit.surgery.edits import Edit, Narrow
from prunekit.surgery.equivalence import Agreement, compare
from prunekit.surgery.residual import empty_blocks


@dataclass(frozen=True, eq=False)
class Cut:
    """A narrow copy of a network, and what was done to make it; None where it was not asked for.

    `keep` lacks the units that left with the blocks in `skipped`, which were removed whole.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    agreement: Agreement | None
    absorbed: Absorbed | None
    keep: ChannelMask
    skipped: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every block that was removed whole."""
        return tuple(
            f"block {name} was removed whole: its branch was empty" for name in self.skipped
        )


def cut(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Tensor],
    batch: Example | None,
    *,
    absorb: bool = True,
    check: bool = True,
    maps: bool = False,
) -> Cut:
    """Remove the units of `graph` that are False in `keep` (group name -> mask) from a copy.

    Where that would empty layers, the residual blocks in whose branches they are go whole. With
    `check` the copy is compared with the silenced network on `batch`, before constants are
    absorbed, which `absorb` asks for; with `maps` by position at padded borders (`BiasMaps`).
    Without a `batch` nothing of that can be done: an empty layer is refused. The network itself,
    and all random states, stay as they are.
    Raises SurgeryError, for an empty layer in no residual branch too.
    """
    with unchanged(model), random_states_kept():
        return _cut(model, graph, keep, batch, absorb=absorb, check=check, maps=maps)


def _cut(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Tensor],
    batch: Example | None,
    *,
    absorb: bool,
    check: bool,
    maps: bool,
) -> Cut:
    keep = ChannelMask.of(graph, keep)
    drop = keep.removed
    blocks = empty_blocks(graph, drop) if batch is not None else ()
    shifts = branch_constants(model, graph, drop, blocks, batch, maps) if absorb else {}
    gone = {n for n in (*graph.ins, *graph.tensors) if any(block.loses(n) for block in blocks)}
    shapes = {name: tuple(shift.value.shape) for name, shift in shifts.items()}
    edits: tuple[Edit, ...] = (
        Narrow.of(graph, drop, gone),
        *(block.edit(shapes.get(block.block)) for block in blocks),
    )
    narrow = duplicate(model)
    for edit in edits:
        edit.apply(narrow)
    renew(narrow)
    silent = [block.end for block in blocks]
    agreement = compare(model, narrow, graph, drop, batch, silent=silent) if check else None
    absorbed = None
    if absorb:
        absorbed = absorb_constants(model, narrow, graph, drop, batch, maps, shifts)
    return Cut(
        model=narrow,
        edits=(*edits, *(absorbed.edits if absorbed else ())),
        agreement=agreement,
        absorbed=absorbed,
        keep=_left(graph, keep, gone),
        skipped=tuple(block.block for block in blocks),
    )


def _left(graph: ChannelGraph, keep: ChannelMask, gone: set[str]) -> ChannelMask:
    """The mask without units that sit in layers that are gone, and in no other."""
    sits = torch.full((graph.count,), not gone)
    for name in graph.ins.keys() - gone:
        sits[graph.ins[name]] = sits[graph.outs[name]] = True
    return ChannelMask.of(graph, {g.name: keep[g.name] & sits[g.units] for g in graph.groups})
