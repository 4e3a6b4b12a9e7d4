"""Playing a recorded run on labels: what all passes over the graph have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.layers import rule_of
from prunekit.graph.steps import Kind, Recording, Step, replayed
from prunekit.graph.values import Value, each, fixed


class Run(ABC):
    """One pass over all recordings of a network; `results` holds what every step produced."""

    def __init__(self, twin: nn.Module, recordings: Sequence[Recording], over_norms: bool) -> None:
        self.twin = twin
        self.recordings = recordings
        self.over_norms = over_norms
        self.steps = [step for recording in recordings for step in recording.steps]
        self.results: dict[Step, Any] = {}

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
        module = self.twin.get_submodule(step.target) if step.kind is Kind.LAYER else None
        return self.call(
            Call(step, step.target if module is None else module, args, kwargs, module)
        )

    def call(self, call: Call) -> Any:
        """The result of an operation; without values among its arguments it is simply executed."""
        if call.values:
            return rule_of(call)(self, call)
        with torch.device("meta"):
            result = self.executed(call)
        return each(result, lambda tensor: fixed(tensor.to("meta")), Tensor)

    def originals(self, call: Call) -> list[Value]:
        """The values of a call as they are in the full network."""
        return call.values

    def outcome(self, call: Call) -> Any:
        """The result on shapes of an operation that is not followed."""
        return call.on_meta()

    def output(self, step: Step, result: Any) -> Any:
        """What leaves the network."""
        return result
