"""Requests that remove nothing: they are refused if they asked for less, and told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from prunekit.errors import ConfigError, listed
from prunekit.selection.base import Selected, Selection

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph


def check_removal(selection: Selection, selected: Selected, graph: ChannelGraph) -> Selected:
    """Return a result, with a note if it removes nothing.

    Raises ConfigError, with the reason, if the settings asked for fewer units.
    """
    if bool(selected.keep.removed.any()):
        return selected
    if selection.reduction:
        widths = {group.name: len(group.units) for group in graph.groups}
        raise ConfigError(f"{selection.reduction} removes nothing: {why_nothing(widths)}")
    note = f"nothing was removed: {selection.all_kept}"
    return replace(selected, notes=(*selected.notes, note))


def why_nothing(widths: Mapping[str, int]) -> str:
    """Say why no unit of groups of these widths goes, and what to do."""
    if max(widths.values()) == 1:
        return (
            f"all channels of {listed([*widths], 4)} hang together as one unit, as under a norm "
            "over all of them, so none can go; batch norms or more groups leave more units, and "
            "prunekit inspect shows what is tied"
        )
    widest = max(widths, key=lambda name: widths[name])
    return (
        f"all units stay after rounding, and beside those that are always kept, in groups of at "
        f"most {widths[widest]} units ({widest}); ask for less, or lower selection.round_to or "
        "selection.min_keep"
    )
