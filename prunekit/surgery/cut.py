"""One cut of a network: narrow a copy, check it, absorb constants, compare with the dense one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Example
from prunekit.graph.wrappers import renew
from prunekit.modes import duplicate, random_states_kept, unchanged
from prunekit.surgery.bias_compensation import Absorbed, branch_constants
from prunekit.surgery.bias_compensation import absorb as absorb_constants
from prunekit.surgery.distance import Distance, measure_distance
from prunekit.surgery.edits import Edit, Narrow
from prunekit.surgery.equivalence import Agreement, check_inputs, compare
from prunekit.surgery.known_constants import KnownConstants, find_known_constants
from prunekit.surgery.reconstruction.base import Refitted
from prunekit.surgery.remove_block import empty_blocks


@dataclass(frozen=True, eq=False)
class Cut:
    """A narrow copy of a network, the edits that made it, and the results of all checks.

    `agreement` is its distance from the silenced network before constants were absorbed, `distance`
    that from the dense network afterwards. They are None where they were not asked for, and so is
    `absorbed`, also where no constants are known and no others were to be absorbed. `keep` lacks
    the units that were removed with the blocks in `skipped`, which were removed whole. `refitted`
    says which layers were refitted afterwards, if any.
    """

    model: nn.Module
    edits: tuple[Edit, ...]
    agreement: Agreement | None
    absorbed: Absorbed | None
    keep: ChannelMask
    skipped: tuple[str, ...] = ()
    distance: Distance | None = None
    refitted: Refitted | None = None

    def with_refit(self, refitted: Refitted, distance: Distance | None) -> Cut:
        """Return the cut after its network was refitted, with the new distance to the dense one."""
        edits, agreement = (*self.edits, *refitted.edits), self.agreement
        if agreement is not None and refitted.layers:
            agreement = agreement.with_note("before layers were refitted")
        return replace(self, edits=edits, agreement=agreement, refitted=refitted, distance=distance)

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
    only_known: bool = False,
) -> Cut:
    """Remove the units of `graph` that are False in `keep` (group name -> mask) from a copy.

    Residual blocks whose branch would be empty are removed whole. With `check` the copy is compared
    with the silenced network on `batch`, and in the end with the dense one. With `absorb` the
    constants of removed channels go into biases, with `only_known` those that are known exactly,
    and with `per_position` into a bias for every position at padded borders (`BiasMaps`). Without a
    `batch` none of this is possible, and an empty layer is refused. The network itself and all
    random states stay as they are. Raises SurgeryError, also for an empty layer that is in no
    residual branch.
    """
    options = {"absorb": absorb, "check": check, "per_position": per_position}
    with unchanged(model), random_states_kept():
        return _cut(model, graph, keep, batch, **options, only_known=only_known)


def _cut(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Tensor],
    batch: Example | None,
    *,
    absorb: bool,
    check: bool,
    per_position: bool,
    only_known: bool,
) -> Cut:
    mask = ChannelMask.of(graph, keep)
    removed = mask.removed
    blocks = empty_blocks(graph, removed) if batch is not None else ()
    known, shifts = KnownConstants(), {}
    if absorb:
        ends = [block.end for block in blocks]
        known = find_known_constants(model, graph, removed, check_inputs(batch), ends)
        absorb = bool(known) or not only_known
    if absorb:
        shifts = branch_constants(
            model, graph, removed, blocks, batch, per_position, known, only_known
        )
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
        absorbed = absorb_constants(
            model, narrow, graph, removed, batch, per_position, shifts, known, only_known
        )
    edits = (*edits, *(absorbed.edits if absorbed else ()))
    return Cut(
        model=narrow,
        edits=edits,
        agreement=agreement,
        absorbed=absorbed,
        keep=_without_layers(graph, mask, in_blocks),
        skipped=tuple(block.block for block in blocks),
        distance=measure_distance(model, narrow, batch) if check else None,
    )


def _without_layers(graph: ChannelGraph, keep: ChannelMask, layers: set[str]) -> ChannelMask:
    """Return the mask without the units that occur in the removed `layers` only."""
    occurs = torch.full((graph.count,), not layers)
    for name in graph.ins.keys() - layers:
        occurs[graph.ins[name]] = occurs[graph.outs[name]] = True
    return ChannelMask.of(graph, {g.name: keep[g.name] & occurs[g.units] for g in graph.groups})
