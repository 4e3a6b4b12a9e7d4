"""Layers that no run called: what a forward could give them, in a branch that was not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from prunekit.graph.layers import channel_dim, widths
from prunekit.graph.steps import HELD, Kind, Recording, Step
from prunekit.graph.values import Value, values_in

_OUTSIDE = -1


def within_reach(
    twin: nn.Module, name: str, recordings: Iterable[Recording], results: Mapping[Step, Any]
) -> Iterator[Value]:
    """The values in the forward that could call a layer: that of the nearest module around it.

    Modules that were never called themselves, such as lists of layers, are passed over.
    """
    for recording in recordings:
        called = {path for step in recording.steps for _, path in step.calls}
        holder = name.rpartition(".")[0]
        while holder and holder not in called:
            holder = holder.rpartition(".")[0]
        for step in recording.steps:
            if step.kind not in (*HELD, Kind.OUTPUT) and _flows(step, holder):
                yield from values_in(results[step])


def fits(layer: nn.Module, value: Value) -> bool:
    """Whether a layer could read a value as it is: as many channels where it expects channels."""
    rank = value.meta.ndim
    if isinstance(layer, nn.Linear):
        known = rank > 1
    else:
        known = rank == len(layer.kernel_size) + 2
    if not known:
        return False
    dim = channel_dim(layer, rank)
    return dim in value.varying and value.meta.shape[dim] == widths(layer)[0]


def _flows(step: Step, holder: str) -> bool:
    """Whether the forward of a module has the result of a step in hand.

    It has not where the step and all that reads it lie in one call inside it, or outside.
    """
    places = {_place(one, holder) for one in (step, *step.users)}
    inside = any(number != _OUTSIDE for number, _ in places)
    return inside and (len(places) > 1 or all(child is None for _, child in places))


def _place(step: Step, holder: str) -> tuple[int, int | None]:
    """The call of the module in which a step happened, and the call inside it, if in one."""
    for depth, (number, path) in enumerate(step.calls):
        if path == holder:
            inner = step.calls[depth + 1 :]
            return number, inner[0][0] if inner else None
    return _OUTSIDE, None
