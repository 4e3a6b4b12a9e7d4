"""Replay recordings on labeled tensors in place of numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, frozen_tensor, map_only, values_in
from prunekit.graph.recording.steps import Kind, Recording, Step, with_results
from prunekit.graph.table import layer_operation, named_operation

UNKNOWN = "it is not known what it does to channels"


class Replay(ABC):
    """Replays all recordings of a network; `results` holds the result of every step."""

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
        """Make units with these labels be removed together."""

    @abstractmethod
    def freeze(self, labels: Tensor, call: Call | None, reason: str | None) -> None:
        """Freeze labels; the title of the call and the reason become a note, unless it is None."""

    @abstractmethod
    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shape of the output of a layer with new channels, and their labels."""

    @abstractmethod
    def visit_norm(self, call: Call, labels: Tensor) -> None:
        """Register a layer that holds parameters for every channel, with their labels."""

    @abstractmethod
    def visit_tensor(self, step: Step) -> Any:
        """Return a parameter or buffer that the forward reads itself."""

    @abstractmethod
    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Return labels for channels that nothing has been written to yet."""

    @abstractmethod
    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """Return labels of what a buffer of indices picks along a dimension; None if unknown."""

    @abstractmethod
    def execute(self, call: Call) -> Any:
        """Return the result of an operation that gets no labeled tensors."""

    def evaluate_step(self, step: Step) -> Any:
        """Return the result of one step."""
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
        """Return the result of an operation by its rule; without labeled tensors execute it."""
        entry = call.entry
        if call.values and (entry is None or not entry.creates):
            return self.freeze_inputs(call) if entry is None else entry.rule(self, call)
        if entry is not None and entry.creates:
            return entry.rule(self, call)
        with torch.device("meta"):
            result = self.execute(call)
        return map_only(result, lambda tensor: frozen_tensor(tensor.to("meta")), Tensor)

    def label_parameters(self, call: Call) -> Call:
        """Return the call with labels for parameters that follow the channels they meet."""
        return call

    def freeze_inputs(self, call: Call, reason: str = UNKNOWN) -> Any:
        """Freeze all inputs of a call that is not followed, and return its frozen result."""
        for value in call.values:
            self.freeze(value.labels, call, reason)
        return map_only(self.unfollowed_result(call), frozen_tensor, Tensor)

    def full_values(self, call: Call) -> list[LabeledTensor]:
        """Return the labeled tensors that a call gets in the full network."""
        return call.values

    def unfollowed_result(self, call: Call) -> Any:
        """Return the result on shapes of an operation that is not followed."""
        return call.meta_result()

    def visit_output(self, step: Step, result: Any) -> Any:
        """Return what the network returns."""
        return result


class Repeats:
    """Finds steps that call the same operation on the same values as an earlier step.

    `results` are those of the first replay and may still grow. `originals` maps every repeated step
    to the earliest equal one.
    """

    def __init__(self, results: Mapping[Step, Any]) -> None:
        self.originals: dict[Step, Step] = {}
        self._results = results
        self._steps: dict[Hashable, Step] = {}
        self._earliest: dict[Step, Step] = {}
        self._labels: dict[LabeledTensor, Hashable] = {}  # holds them: no address is used twice

    def remember(self, step: Step) -> Step:
        """Remember a step, and return the earliest equal one."""
        key = self._key(step)
        if key is not None:
            self._earliest[step] = self._steps.setdefault(key, step)
        return self.earliest(step)

    def earliest(self, step: Step) -> Step:
        """Return the earliest step that is equal to this one, often itself."""
        return self._earliest.get(step, step)

    def repeated(self, step: Step) -> Step | None:
        """Return the step that this one repeats; if there is none, remember it."""
        original = self.remember(step)
        if original is step:
            return None
        self.originals[step] = original
        return original

    def _key(self, step: Step) -> Hashable | None:
        """Return a key that equal steps share; None for steps that have to be replayed.

        Those are steps that create tensors, since each of these gets labels of its own, and
        outputs, since notes name their recording.
        """
        if step.kind not in (Kind.LAYER, Kind.CALL):
            return None
        entry = named_operation(step.name)
        if entry is not None and entry.creates:
            return None
        key = (
            *(step.kind, step.name, step.target, step.guard),
            *(self._argument_key(step.args), self._argument_key(step.kwargs)),
        )
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def _argument_key(self, item: Any) -> Any:
        """Return literals with their types, and tensors as their shapes and labels."""
        if isinstance(item, Step):
            return self._result_key(item)
        if isinstance(item, tuple | list):
            return (type(item), *map(self._argument_key, item))
        if isinstance(item, dict):
            return tuple((name, self._argument_key(inner)) for name, inner in item.items())
        if isinstance(item, slice):
            return (slice, *map(self._argument_key, (item.start, item.stop, item.step)))
        return type(item), item

    def _result_key(self, step: Step) -> Any:
        """Return a key of the result of a step; numbers differ by how they were computed."""
        path = step.target if step.kind is Kind.TENSOR else None
        result = self._results[step]
        if isinstance(result, LabeledTensor):
            return path, self._value_key(result)
        values = values_in(result)
        if not values:
            return path, id(self.earliest(step))
        return path, type(result), *map(self._value_key, values)

    def _value_key(self, value: LabeledTensor) -> Hashable:
        if value not in self._labels:
            meta, labels = value.meta, value.labels
            self._labels[value] = (
                meta.shape,
                meta.stride(),
                meta.dtype,
                value.source,
                labels_key(labels),
            )
        return self._labels[value]


def concatenate_labels(values: Iterable[LabeledTensor]) -> tuple[Tensor, Tensor]:
    """Return distinct labels of values in one vector, and for each entry the number of its value.

    The vector starts with a frozen entry.
    """
    distinct = {labels_key(value.labels): value.labels for value in values}
    flat = [torch.zeros(1, dtype=torch.long), *(labels.flatten() for labels in distinct.values())]
    sizes = torch.tensor([len(labels) for labels in flat])
    return torch.cat(flat), torch.repeat_interleave(torch.arange(len(flat)), sizes)


def labels_key(labels: Tensor) -> Hashable:
    """Return a key that equal labels share, by their memory, which is never changed."""
    if labels.numel() == 1:
        return labels.item()
    return labels.data_ptr(), labels.shape, labels.stride()
