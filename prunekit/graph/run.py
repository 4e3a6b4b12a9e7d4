"""Playing recorded runs on labels: what all passes over them have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.recording.steps import Kind, Recording, Step, with_results
from prunekit.graph.table import layer_operation, named_operation
from prunekit.graph.values import LabeledTensor, frozen_tensor, map_only

UNKNOWN = "it is not known what it does to channels"


class Replay(ABC):
    """One pass over all recordings of a network; `results` holds what every step produced."""

    def __init__(
        self, network: nn.Module, recordings: Sequence[Recording], over_norms: bool
    ) -> None:
        self.network = network
        self.recordings = recordings
        self.over_norms = over_norms
        self.steps = [step for recording in recordings for step in recording.steps]
        self.results: dict[Step, Any] = {}
        self._modules = dict(network.named_modules())

    @abstractmethod
    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet share their fate."""

    @abstractmethod
    def freeze(self, labels: Tensor, call: Call | None, why: str | None) -> None:
        """These labels stay; `why` becomes a note, behind the call's title; None says nothing."""

    @abstractmethod
    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Pass a layer that makes new channels; returns its output's shape and their labels."""

    @abstractmethod
    def visit_norm(self, call: Call, labels: Tensor) -> None:
        """Pass a layer that holds parameters for every channel."""

    @abstractmethod
    def visit_tensor(self, step: Step) -> Any:
        """A parameter or buffer that the forward reads by itself."""

    @abstractmethod
    def execute(self, call: Call) -> Any:
        """The result of an operation on no values at all, as plain as it comes."""

    def label_parameters(self, call: Call) -> Call:
        """Let parameters in the arguments follow the channels they are combined with."""
        return call

    def evaluate_step(self, step: Step) -> Any:
        """The result of one step."""
        if step.kind is Kind.INPUT:
            return frozen_tensor(step.result)
        if step.kind is Kind.CONSTANT:
            return frozen_tensor(step.result, step.target)
        if step.kind is Kind.TENSOR:
            return self.visit_tensor(step)
        args, kwargs = with_results((step.args, step.kwargs), self.results)
        if step.kind is Kind.OUTPUT:
            return self.visit_output(step, args[0])
        if step.kind is Kind.LAYER:
            module = self._modules[step.target]
            return self.evaluate(Call(step, module, args, kwargs, layer_operation(module), module))
        return self.evaluate(Call(step, step.target, args, kwargs, named_operation(step.name)))

    def evaluate(self, call: Call) -> Any:
        """The result of an operation; without values among its arguments it is simply executed."""
        entry = call.entry
        if call.values and (entry is None or not entry.creates):
            return self.freeze_inputs(call) if entry is None else entry.rule(self, call)
        if entry is not None and entry.creates:
            return entry.rule(self, call)
        with torch.device("meta"):
            result = self.execute(call)
        return map_only(result, lambda tensor: frozen_tensor(tensor.to("meta")), Tensor)

    @abstractmethod
    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Labels for channels that nothing has been written to yet."""

    @abstractmethod
    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """Labels of what a buffer of indices picks along a dimension; None: it is not known."""

    def freeze_inputs(self, call: Call, why: str = UNKNOWN) -> Any:
        """Freeze everything that goes in; nothing that comes out can vanish."""
        for value in call.values:
            self.freeze(value.labels, call, why)
        return map_only(self.unfollowed_result(call), frozen_tensor, Tensor)

    def full_values(self, call: Call) -> list[LabeledTensor]:
        """The values of a call as they are in the full network."""
        return call.values

    def unfollowed_result(self, call: Call) -> Any:
        """The result on shapes of an operation that is not followed."""
        return call.meta_result()

    def visit_output(self, step: Step, result: Any) -> Any:
        """What leaves the network."""
        return result
