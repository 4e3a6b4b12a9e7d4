"""Which groups a pattern of layer names means: `layer4.*`, `features.0`, `*.conv1`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch

from prunekit.errors import ConfigError, one_of

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph


def ignored(graph: ChannelGraph, patterns: Iterable[str]) -> set[str]:
    """The groups that stay whole because a layer with a matching name has units of theirs.

    A pattern may also mean layers whose outputs cannot be cut anyway, a classifier for instance.
    ConfigError with near names where it matches no layer.
    """
    return {
        name for pattern in patterns for name in groups_matching(graph, pattern, "selection.ignore")
    }


def assigned(graph: ChannelGraph, values: Mapping[str, float]) -> dict[str, float]:
    """Group name -> the value of the first pattern that matches; the others are left out.

    ConfigError where a pattern matches nothing that can be cut.
    """
    found: dict[str, float] = {}
    for pattern, value in values.items():
        names = groups_matching(graph, pattern, "selection.layers")
        if not names:
            raise ConfigError(
                f"selection.layers: no output channel of {pattern!r} can be cut; "
                f"{one_of(pattern, _accepted(group.name for group in graph.groups))}"
            )
        found = dict.fromkeys(names, value) | found
    return found


def groups_matching(graph: ChannelGraph, pattern: str, setting: str) -> set[str]:
    """The groups with a unit among the outputs of a layer whose name matches."""
    layers = [name for name in graph.outs if fnmatchcase(name, pattern)]
    found = {group.name for group in graph.groups if fnmatchcase(group.name, pattern)}
    if not layers and not found:
        hint = one_of(pattern, _accepted(graph.outs))
        raise ConfigError(f"{setting}: {pattern!r} matches no layer; {hint}")
    hit = torch.zeros(graph.count, dtype=torch.bool)
    for name in layers:
        hit[graph.outs[name]] = True
    return found | {group.name for group in graph.groups if bool(hit[group.units].any())}


def _accepted(names: Iterable[str]) -> set[str]:
    """Names, and the patterns that mean all layers inside a module."""
    found = set(names)
    inside = {f"{'.'.join(n.split('.')[:i])}.*" for n in found for i in range(1, n.count(".") + 1)}
    return found | inside
