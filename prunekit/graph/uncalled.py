"""Layers that no run called: what a forward could give them, in a branch that was not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from prunekit.graph.layers import channel_dim, widths
from prunekit.graph.recording.steps import STORED, Kind, Recording, Step
from prunekit.graph.values import LabeledTensor, values_in

_OUTSIDE = -1


class ModuleValues:
    """The values in the forwards of the modules of a network."""

    def __init__(self, recordings: Sequence[Recording], results: Mapping[Step, Any]) -> None:
        self.steps = [step for recording in recordings for step in recording.steps]
        self.results = results
        self._called = {path for step in self.steps for _, path in step.calls}
        self._values: dict[str, list[LabeledTensor]] = {}

    def reachable(self, name: str) -> list[LabeledTensor]:
        """What could be given to a layer: the values in the nearest module around it.

        Modules that were never called themselves, such as lists of layers, are passed over.
        """
        holder = name.rpartition(".")[0]
        while holder and holder not in self._called:
            holder = holder.rpartition(".")[0]
        if holder not in self._values:
            self._values[holder] = [
                value
                for step in self.steps
                if step.kind not in (*STORED, Kind.OUTPUT) and _is_available(step, holder)
                for value in values_in(self.results[step])
            ]
        return self._values[holder]


def could_read(layer: nn.Module, value: LabeledTensor) -> bool:
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


def _is_available(step: Step, holder: str) -> bool:
    """Whether the forward of a module has the result of a step in hand.

    It has not where the step and all that reads it lie in one call inside it, or outside.
    """
    places = {_position(one, holder) for one in (step, *step.users)}
    inside = any(number != _OUTSIDE for number, _ in places)
    return inside and (len(places) > 1 or all(child is None for _, child in places))


def _position(step: Step, holder: str) -> tuple[int, int | None]:
    """The call of the module in which a step happened, and the call inside it, if in one."""
    for depth, (number, path) in enumerate(step.calls):
        if path == holder:
            inner = step.calls[depth + 1 :]
            return number, inner[0][0] if inner else None
    return _OUTSIDE, None
