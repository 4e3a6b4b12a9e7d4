"""One cut of a network: narrow a copy, check it numerically, absorb constants into biases."""

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
from prunekit.surgery.remove_block import empty_blocks


@dataclass(frozen=True, eq=False)
class Cut:
    """A narrow copy of a network, the edits that made it, and the results of both checks.

    `agreement` and `absorbed` are None where they were not asked for. `keep` lacks the units that
    were removed with the blocks in `skipped`, which were removed whole.
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
    per_position: bool = False,
) -> Cut:
    """Remove the units of `graph` that are False in `keep` (group name -> mask) from a copy.

    Residual blocks whose branch would be empty are removed whole. With `check` the copy is compared
    with the silenced network on `batch`. With `absorb` the constants of removed channels then go
    into biases, and with `per_position` into a bias for every position at padded borders
    (`BiasMaps`). Without a `batch` neither is possible, and an empty layer is refused. The network
    itself and all random states stay as they are. Raises SurgeryError, also for an empty layer that
    is in no residual branch.
    """
    with unchanged(model), random_states_kept():
        return _cut(
            model, graph, keep, batch, absorb=absorb, check=check, per_position=per_position
        )


def _cut(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Tensor],
    batch: Example | None,
    *,
    absorb: bool,
    check: bool,
    per_position: bool,
) -> Cut:
    mask = ChannelMask.of(graph, keep)
    removed = mask.removed
    blocks = empty_blocks(graph, removed) if batch is not None else ()
    shifts = branch_constants(model, graph, removed, blocks, batch, per_position) if absorb else {}
    in_blocks = {
        name
        for name in (*graph.ins, *graph.tensors)
        if any(block.removes(name) for block in blocks)
    }
    shapes = {name: tuple(shift.value.shape) for name, shift in shifts.items()}
    edits: tuple[Edit, ...] = (
        Narrow.of(graph, removed, in_blocks),
        *(block.edit(shapes.get(block.block)) for block in blocks),
    )
    narrow = duplicate(model)
    for edit in edits:
        edit.apply(narrow)
    renew(narrow)
    silent = [block.end for block in blocks]
    agreement = compare(model, narrow, graph, removed, batch, silent=silent) if check else None
    absorbed = None
    if absorb:
        absorbed = absorb_constants(model, narrow, graph, removed, batch, per_position, shifts)
    return Cut(
        model=narrow,
        edits=(*edits, *(absorbed.edits if absorbed else ())),
        agreement=agreement,
        absorbed=absorbed,
        keep=_without_layers(graph, mask, in_blocks),
        skipped=tuple(block.block for block in blocks),
    )


def _without_layers(graph: ChannelGraph, keep: ChannelMask, layers: set[str]) -> ChannelMask:
    """Return the mask without the units that occur in the removed `layers` only."""
    occurs = torch.full((graph.count,), not layers)
    for name in graph.ins.keys() - layers:
        occurs[graph.ins[name]] = occurs[graph.outs[name]] = True
    return ChannelMask.of(graph, {g.name: keep[g.name] & occurs[g.units] for g in graph.groups})
