"""Write the steps of one forward pass down, and know which step every tensor and size is from."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.recording.execution import shape_of
from prunekit.graph.recording.nests import leaves_in, tree_map
from prunekit.graph.recording.steps import Kind, Recording, Step, current_line, operation_name
from prunekit.graph.recording.tracking import (
    TrackedFloat,
    TrackedInt,
    UnrecordedOrigins,
    UnrecordedTensor,
    plain,
    track,
)


class StepWriter:
    """Writes the steps of one forward pass of `network`, a copy, into `recording`.

    `sizes` makes sizes remember how they were computed.
    """

    def __init__(self, network: nn.Module, sizes: bool) -> None:
        super().__init__()
        self.network = network
        self.recording = Recording()
        self._tracks_sizes = sizes
        self._in_layer = False  # calls inside a layer are not recorded
        self._recording_step = False
        self._ended = False
        self._origins = UnrecordedOrigins(
            self._producer, lambda: self._in_layer or self._recording_step
        )
        self._meta_tensors: list[weakref.ref[Tensor]] = []
        self._stack: list[tuple[int, str]] = []
        self._named_tensors = named_tensors(network)
        self._paths = {id(tensor): path for path, tensor in self._named_tensors}
        self._tensors: dict[str, Step] = {}
        self._constants: dict[tuple[int, int], tuple[Tensor, Step]] = {}

    def on_computed(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Track a number that was computed from sizes; it becomes a step when it is used."""
        return track(value, self, op, args) if self._tracks_sizes and not self._ended else value

    def on_decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Record a plain value that the forward goes on with as a guard."""
        if self._tracks_sizes and not self._ended:
            with torch._C.DisableTorchFunction():
                self._add(Kind.CALL, op, args, {}, value, operation_name(op)).guard = True

    def _track_size(self, value: int, step: Step) -> Any:
        size = TrackedInt(value)
        size.tracker, size.origin, size.step = self, (operator.getitem, ()), step
        return size

    def _add(
        self, kind: Kind, target: Any, args: Any, kwargs: Any, result: Any, name: str | None = None
    ) -> Step:
        args, kwargs = tree_map((args, kwargs), self._step_of)
        step = Step(kind, target, args, kwargs, result, name, tuple(self._stack), current_line())
        return self.recording.add(step)

    def _register(self, tensor: Tensor, step: Step) -> None:
        tensor.__dict__["_recorded"] = (self, step)
        if tensor.is_meta and step.kind is not Kind.INPUT:
            self._meta_tensors.append(weakref.ref(tensor))
        if tensor._base is not None:
            tensor._base.__dict__["_viewed"] = True

    def _input_steps(self, nest: Any) -> list[Step]:
        """Return the steps of the recorded tensors and sizes in a nest."""
        steps: list[Step] = []
        for leaf in leaves_in(nest, (Tensor, TrackedInt, TrackedFloat)):
            if not isinstance(leaf, Tensor):
                steps += [self._step_of(leaf)] if leaf.tracker is self else []
            elif self._producer(leaf) is not None or id(leaf) in self._paths:
                steps.append(self._step_of(leaf))
        return steps

    def _producer(self, tensor: Tensor) -> Step | None:
        """Return the step of this recording that computed a tensor."""
        owner, step = getattr(tensor, "_recorded", (None, None))
        return step if owner is self else None

    def _step_of(self, leaf: Any) -> Any:
        """Return the step of a tensor or a size; other leaves as they are."""
        if isinstance(leaf, TrackedInt | TrackedFloat):
            if leaf.tracker is not self:
                return plain(leaf)
            if leaf.step is None:
                op, args = leaf.origin
                leaf.step = self._add(Kind.CALL, op, args, {}, plain(leaf), operation_name(op))
            return leaf.step
        if not isinstance(leaf, Tensor):
            return leaf
        step = self._producer(leaf)
        path = self._paths.get(id(leaf))
        if step is None and path is not None:
            if path not in self._tensors:
                self._tensors[path] = self._add(Kind.TENSOR, path, (), {}, shape_of(leaf))
            return self._tensors[path]
        return self._constant(leaf) if step is None else step

    def _constant(self, tensor: Tensor) -> Step:
        self._check_recorded([tensor])
        key = (id(tensor), tensor._version)  # it may be changed in place
        if key not in self._constants:
            step = self._add(Kind.CONSTANT, tensor.detach().clone(), (), {}, shape_of(tensor))
            self._constants[key] = (tensor, step)
        return self._constants[key][1]

    def _check_recorded(self, tensors: list[Tensor]) -> None:
        """Raise UnrecordedTensor for a tensor from inputs whose operation was not reported."""
        for tensor in tensors:
            is_known = self._producer(tensor) is not None or id(tensor) in self._paths
            if not is_known and (
                tensor.is_meta or tensor.grad_fn is not None or self._origins.is_unrecorded(tensor)
            ):
                raise UnrecordedTensor(
                    f"a tensor of shape {tuple(tensor.shape)} comes from an operation that is not "
                    "seen, such as compiled code"
                )


def named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters, then the buffers of a network, each once with its first path."""
    parameters: dict[int, tuple[str, Tensor]] = {}
    buffers: dict[int, tuple[str, Tensor]] = {}
    for path, module in network.named_modules():
        for known, own in ((parameters, module._parameters), (buffers, module._buffers)):
            for name, tensor in own.items():
                if tensor is not None:
                    known.setdefault(id(tensor), (f"{path}.{name}" if path else name, tensor))
    return [*parameters.values(), *buffers.values()]
