"""Playing recorded runs on labels: what all passes over them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.recording.steps import Kind, Recording, Step, replayed
from prunekit.graph.table import of_layer, of_name
from prunekit.graph.values import Value, each, fixed

UNKNOWN = "it is not known what it does to channels"


class Run(ABC):
    """One pass over all recordings of a network; `results` holds what every step produced."""

    def __init__(self, twin: nn.Module, recordings: Sequence[Recording], over_norms: bool) -> None:
        self.twin = twin
        self.recordings = recordings
        self.over_norms = over_norms
        self.steps = [step for recording in recordings for step in recording.steps]
        self.results: dict[Step, Any] = {}
        self._modules = dict(twin.named_modules())

    @abstractmethod
    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet share their fate."""

    @abstractmethod
    def freeze(self, labels: Tensor, call: Call | None, why: str | None) -> None:
        """These labels stay; `why` becomes a note, behind the call's title; None says nothing."""

    @abstractmethod
    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Pass a layer that makes new channels; returns its output's shape and their labels."""

    @abstractmethod
    def norm(self, call: Call, labels: Tensor) -> None:
        """Pass a layer that holds parameters for every channel."""

    @abstractmethod
    def attribute(self, step: Step) -> Any:
        """A parameter or buffer that the forward reads by itself."""

    @abstractmethod
    def executed(self, call: Call) -> Any:
        """The result of an operation on no values at all, as plain as it comes."""

    def adopt(self, call: Call) -> Call:
        """Let parameters in the arguments follow the channels they are combined with."""
        return call

    def step(self, step: Step) -> Any:
        """The result of one step."""
        if step.kind is Kind.INPUT:
            return fixed(step.result)
        if step.kind is Kind.CONSTANT:
            return fixed(step.result, step.target)
        if step.kind is Kind.TENSOR:
            return self.attribute(step)
        args, kwargs = replayed((step.args, step.kwargs), self.results)
        if step.kind is Kind.OUTPUT:
            return self.output(step, args[0])
        if step.kind is Kind.LAYER:
            module = self._modules[step.target]
            return self.call(Call(step, module, args, kwargs, of_layer(module), module))
        return self.call(Call(step, step.target, args, kwargs, of_name(step.name)))

    def call(self, call: Call) -> Any:
        """The result of an operation; without values among its arguments it is simply executed."""
        entry = call.entry
        if call.values and (entry is None or not entry.makes):
            return self.unknown(call) if entry is None else entry.rule(self, call)
        if entry is not None and entry.makes:
            return entry.rule(self, call)
        with torch.device("meta"):
            result = self.executed(call)
        return each(result, lambda tensor: fixed(tensor.to("meta")), Tensor)

    @abstractmethod
    def blank(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Labels for channels that nothing has been written to yet."""

    @abstractmethod
    def picked(self, call: Call, value: Value, dim: int, index: Value) -> Tensor | None:
        """Labels of what a buffer of indices picks along a dimension; None: it is not known."""

    def unknown(self, call: Call, why: str = UNKNOWN) -> Any:
        """Freeze everything that goes in; nothing that comes out can vanish."""
        for value in call.values:
            self.freeze(value.labels, call, why)
        return each(self.outcome(call), fixed, Tensor)

    def originals(self, call: Call) -> list[Value]:
        """The values of a call as they are in the full network."""
        return call.values

    def outcome(self, call: Call) -> Any:
        """The result on shapes of an operation that is not followed."""
        return call.on_meta()

    def output(self, step: Step, result: Any) -> Any:
        """What leaves the network."""
        return result
