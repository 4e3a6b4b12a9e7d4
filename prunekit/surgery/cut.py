"""One cut of a network: narrow a copy, prove it by numbers, absorb what removed channels emit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.modes import duplicate
from prunekit.surgery.absorb import Absorbed
from prunekit.surgery.absorb import absorb as absorb_constants
from prunekit.surgery.check import Agreement, Batch, compare
from prunekit.surgery.edits import Edit, Narrow


@dataclass(frozen=True, eq=False)
class Cut:
    """A narrow copy of a network, and what was done to make it; None where it was not asked for."""

    model: nn.Module
    edits: tuple[Edit, ...]
    agreement: Agreement | None
    absorbed: Absorbed | None


def cut(
    model: nn.Module,
    graph: ChannelGraph,
    keep: Mapping[str, Tensor],
    batch: Batch,
    *,
    absorb: bool = True,
    check: bool = True,
    maps: bool = False,
) -> Cut:
    """Remove the units of `graph` that are False in `keep` (group name -> mask) from a copy.

    With `check` the copy is compared with the silenced network on `batch`, before constants are
    absorbed, which `absorb` asks for; with `maps` by position at padded borders (`BiasMaps`).
    Raises SurgeryError.
    """
    drop = graph.drop({name: ~mask for name, mask in keep.items()})
    edit = Narrow.of(graph, drop)
    narrow = duplicate(model)
    edit.apply(narrow)
    agreement = compare(model, narrow, graph, drop, batch) if check else None
    absorbed = None
    if absorb:
        absorbed = absorb_constants(model, narrow, graph, drop, batch, maps)
    return Cut(narrow, (edit, *(absorbed.edits if absorbed else ())), agreement, absorbed)
