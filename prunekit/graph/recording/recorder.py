"""Runs a copy of a network for real and writes down every step, whatever Python is in between.

Functions and methods of torch come by through `TorchFunctionMode`, modules through their `forward`.
Where the copy holds shapes only, nothing is computed but them.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph.recording.execution import Execution, is_in_place
from prunekit.graph.recording.leaks import release_tensors
from prunekit.graph.recording.lines import current_line, place_of
from prunekit.graph.recording.listening import ObservedModule, calls_observed
from prunekit.graph.recording.nests import leaves_in, tensors_within, tree_map
from prunekit.graph.recording.origins import UnrecordedOrigins, UnrecordedTensor
from prunekit.graph.recording.sizes import TrackedFloat, TrackedInt, plain, track
from prunekit.graph.recording.steps import Kind, Recording, Step, operation_name, tensors_in

_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_SIZE_QUERIES = frozenset({"size", "numel", "nelement", "stride"})
_ACCESS = frozenset({"__get__", "__set__", "__delete__"})
_DEVICE_ATTRIBUTES = {
    "device": "",
    "is_meta": "meta",
    "is_cpu": "cpu",
    "is_cuda": "cuda",
    "is_mps": "mps",
}
_VALUE_READS = frozenset(
    {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy"}
    | {"equal", "allclose", "is_nonzero", "__array__", "__complex__"}
    | {"__reduce_ex__", "__dlpack__"}
)
_FACTORIES = {
    **{"new_empty": torch.empty, "new_zeros": torch.zeros},
    **{"new_ones": torch.ones, "new_full": torch.full},
}


class Recorder(TorchFunctionMode):
    """Writes down a run of `twin`; `sizes` says whether sizes remember where they are from."""

    def __init__(self, network: nn.Module, sizes: bool = True) -> None:
        super().__init__()
        self.network = network
        self.recording = Recording()
        self.queried: set[str] = set()  # what else the forward depends on: "training", "grad"
        self._current: tuple[Any, str] | None = None  # what is being called, and its name or path
        self.error: Exception | None = None
        self._tracks_sizes = sizes
        self._in_layer = False  # a layer, which is not looked into
        self._recording_step = False  # with a step that is written down
        self._ended = False
        self._origins = UnrecordedOrigins(
            self._recorded, lambda: self._in_layer or self._recording_step
        )
        self._meta_tensors: list[weakref.ref[Tensor]] = []  # that the run has made
        self._stack: list[tuple[int, str]] = []
        self._calls = 0
        named = [*network.named_parameters(), *network.named_buffers()]
        self._paths = {id(tensor): path for path, tensor in named}
        self._tensors: dict[str, Step] = {}
        self._constants: dict[tuple[int, int], tuple[Tensor, Step]] = {}
        self._device = next((one.device for one in _devices(network)), torch.device("cpu"))
        self._execution = Execution(any(tensor.is_meta for tensor in network.parameters()))
        self._current_inputs: list[Step] = []
        self._names: dict[int, str] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """The steps of one call of the network; whatever it raises is passed on."""
        for place, tensor in enumerate(tensors_in((args, kwargs))):
            self._register(tensor, self._add(Kind.INPUT, place, (), {}, shape_of(tensor)))
        try:
            with ExitStack() as stack:
                stack.enter_context(calls_observed(self, self.network))
                if not self._execution.shapes_only:
                    stack.enter_context(self._origins)
                stack.enter_context(self)
                found = self.network(*args, **kwargs)
            returned = tuple(self._step_of(tensor) for tensor in tensors_within(found))
            self._add(Kind.OUTPUT, "output", (returned,), {}, None)
            del found
        finally:
            self._end()
        return self.recording

    def _end(self) -> None:
        """Sizes are plain from now on, and nobody keeps shapes of this run."""
        self._ended = True
        kept = [one for one in (known() for known in self._meta_tensors) if one is not None]
        release_tensors(kept, self.network)

    @property
    def parameters_unchanged(self) -> bool:
        """Whether the run left the parameters of the copy as they were, as hooks may not."""
        named = [*self.network.named_parameters(), *self.network.named_buffers()]
        hooked = any(one._forward_hooks or one._forward_pre_hooks for one in self.network.modules())
        return not hooked and {id(tensor): path for path, tensor in named} == self._paths

    def describe_current(self, place: str) -> str:
        """What failed, with its place in the user's code."""
        if self._current is None:
            return place
        callee, name = self._current
        if isinstance(callee, nn.Module):
            return f" at {name}" if [*callee.children()] else f" at {name}, {callee!r}"
        return f" at {operation_name(callee) or name}{place.partition(' (')[0]}"

    def fail(self, why: str, error: Exception) -> None:
        """End a run that failed: what nothing has read yet, or was being read, is its last step."""
        self.error, self.recording.failed = error, why
        read = [step for step in self.recording.steps if not step.users]
        self._add(Kind.OUTPUT, "output", ((*read, *self._current_inputs),), {}, None)

    # what torch tells

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__iter__":
            func, name = Tensor.unbind, "unbind"
            return iter(self._observe(func, name, args, kwargs))
        return self._observe(func, name, args, kwargs)

    def _observe(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        known = self._steps_of_leaves((args, kwargs)) if name not in _ACCESS else []
        if name not in _ACCESS and not known:
            self._check_recorded(tensors_in((args, kwargs)))
            return func(*args, **kwargs)
        before, self._recording_step = self._recording_step, True
        try:
            if name == "__get__":
                return self._get_attribute(func, func.__self__.__name__, args)
            if name in _ACCESS:
                return self._set_attribute(func, args, kwargs)
            if name in _SIZE_QUERIES or name == "__len__":
                return self._query_size(func, name, args, kwargs)
            self._current_inputs = known
            return self._call(func, name, args, kwargs)
        finally:
            self._recording_step = before

    def _set_attribute(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An attribute of a tensor that is set: its numbers may become those of another."""
        found = func(*args, **kwargs)
        if func.__self__.__name__ == "data":
            self.on_memory_replaced(*args)
        return found

    def on_memory_replaced(self, tensor: Tensor, source: Any) -> None:
        """The memory of a tensor is from now on that of another."""
        if self._steps_of_leaves((tensor, source)):
            with torch._C.DisableTorchFunction():
                if not isinstance(source, Tensor):
                    raise UnrecordedTensor(
                        f"memory is put into a tensor of shape {tuple(tensor.shape)}"
                    )
                self._register(tensor, self._step_of(source))

    def _get_attribute(self, func: Callable[..., Any], attribute: str, args: Any) -> Any:
        """An attribute of a tensor: shapes are followed, types and devices are plain."""
        if attribute in _DEVICE_ATTRIBUTES and args[0].is_meta:
            return (
                self._device
                if attribute == "device"
                else _DEVICE_ATTRIBUTES[attribute] == self._device.type
            )
        if attribute == "requires_grad":
            self.queried.add("grad")
        if self._steps_of_leaves(args) and attribute == "shape":
            return self._query_size(func, "shape", args, {})
        if self._steps_of_leaves(args) and attribute in _VIEW_ATTRIBUTES:
            with torch.no_grad():
                return self._record(getattr, "getattr", (args[0], attribute), {}, func(*args))
        return func(*args)

    def _query_size(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        found = func(*tree_map(args, plain), **tree_map(kwargs, plain))
        if not self._tracks_sizes:
            return found
        if name == "__len__":
            self.on_decided(
                found, operator.getitem, (self._query_size(_shape, "shape", args, {}), 0)
            )
            return found
        if name == "shape":
            step = self._record(getattr, "getattr", (args[0], "shape"), {}, found)
        else:
            step = self._record(func, name, args, kwargs, found)
        if isinstance(found, int):
            return self._track_size(found, step)
        items = [
            self.on_computed(size, operator.getitem, (step, index))
            for index, size in enumerate(found)
        ]
        return torch.Size(items)

    def _call(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        self._current = (func, name)
        if name in _VALUE_READS and any(
            step.kind is not Kind.CONSTANT for step in self._steps_of_leaves(args)
        ):
            told = place_of(current_line())
            self.recording.notes[f"the forward reads values of tensors at {told}"] = None
        result = self._execution.function(func, name, args, kwargs)
        self._current = None
        if name == "__setitem__":
            name = None if _is_viewed(args[0]) else "setitem"
            return self._record(func, name, args, kwargs, args[0])
        if name in _VALUE_READS:  # whose entries the forward went on with
            self._add(Kind.CALL, func, args, kwargs, None, operation_name(func))
            return result
        if not isinstance(result, Tensor | tuple | list):
            return result
        if name in _FACTORIES:
            return self._create(name, args, kwargs, result)
        if not is_in_place(name, kwargs):
            result = _unaliased(result, args)
        return self._record(func, operation_name(func), args, kwargs, result)

    def _create(self, name: str, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """A tensor that borrows its type from another, with nothing of its channels."""
        names = ("size", "fill_value", "dtype", "requires_grad")
        kwargs = {key: one for key, one in kwargs.items() if key in names}
        sizes, kwargs = args[1:], {**kwargs, "dtype": result.dtype}
        return self._record(
            _FACTORIES[name], operation_name(_FACTORIES[name]), sizes, kwargs, result
        )

    # what modules tell

    def on_mode_read(self, module: nn.Module) -> None:
        """The forward went by its mode."""
        self.queried.add("training")

    def on_width_read(self, layer: nn.Module) -> None:
        """The forward read how many channels a layer of its own has."""
        if not self._names:
            self._names = {id(module): path for path, module in self.network.named_modules()}
        if id(layer) in self._names and self._stack:
            self.recording.widths[self._names[id(layer)], self._stack[-1][1]] = None

    def on_module(
        self, call: ObservedModule, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The call of a module's forward."""
        if self._in_layer:
            return forward(*args, **kwargs)
        self._calls += 1
        self._stack.append((self._calls, call.path))
        try:
            if call.layer:
                self._in_layer = True
                with torch._C.DisableTorchFunction():
                    return self._layer(call, forward, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self._in_layer = False
            self._stack.pop()

    def _layer(
        self, call: ObservedModule, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        module, path = call.module, call.path
        self._current = (module, path)
        self._current_inputs = self._steps_of_leaves((args, kwargs))
        self._check_recorded(tensors_in((args, kwargs)))
        result = self._execution.layer(module, forward, args, kwargs)
        self._current = None
        if not getattr(module, "inplace", False):
            result = _unaliased(result, args)
        args = (*args, *(one for one in call.tensors() if self._recorded(one)), *call.new_tensors())
        return self._record(path, None, args, kwargs, result, Kind.LAYER)

    # what sizes tell

    def on_computed(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A number that was computed from sizes; it becomes a step when it is used."""
        return track(value, self, op, args) if self._tracks_sizes and not self._ended else value

    def on_decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Mark what the forward went on with."""
        if self._tracks_sizes and not self._ended:
            with torch._C.DisableTorchFunction():
                self._add(Kind.CALL, op, args, {}, value, operation_name(op)).guard = True

    def _track_size(self, value: int, step: Step) -> Any:
        size = track(value, self, operator.getitem, ())
        size.step = step
        return size

    # steps

    def _record(
        self,
        target: Any,
        name: str | None,
        args: Any,
        kwargs: Any,
        result: Any,
        kind: Kind = Kind.CALL,
    ) -> Any:
        """Write a step down; tensors in its result are known from then on."""
        step = self._add(kind, target, args, kwargs, tree_map(result, shape_of), name)
        if (name == "getattr" and not tensors_in((result,))) or name in _SIZE_QUERIES:
            return step
        self._register_result(result, step)
        return result

    def _register_result(self, result: Any, step: Step) -> None:
        if isinstance(result, Tensor):
            self._register(result, step)
        elif isinstance(result, tuple | list):
            for index, item in enumerate(result):
                if tensors_in((item,)):
                    part = self._add(
                        *(Kind.CALL, operator.getitem, (step, index), {}),
                        *(tree_map(item, shape_of), "getitem"),
                    )
                    self._register_result(item, part)

    def _add(
        self, kind: Kind, target: Any, args: Any, kwargs: Any, result: Any, name: str | None = None
    ) -> Step:
        args, kwargs = tree_map((args, kwargs), self._step_of)
        step = Step(kind, target, args, kwargs, result, name, tuple(self._stack), current_line())
        return self.recording.add(step)

    def _register(self, tensor: Tensor, step: Step) -> None:
        tensor._recorded = (self, step)
        if tensor.is_meta and step.kind is not Kind.INPUT:
            self._meta_tensors.append(weakref.ref(tensor))
        if tensor._base is not None:
            tensor._base._viewed = True

    def _steps_of_leaves(self, nest: Any) -> list[Step]:
        """The steps of tensors and sizes in a nest, as far as they have some."""
        found = []
        for leaf in leaves_in(nest, (Tensor, TrackedInt, TrackedFloat)):
            if not isinstance(leaf, Tensor):
                found += [self._step_of(leaf)] if leaf.tracker is self else []
            elif self._recorded(leaf) is not None or id(leaf) in self._paths:
                found.append(self._step_of(leaf))
        return found

    def _recorded(self, tensor: Tensor) -> Step | None:
        owner, step = getattr(tensor, "_recorded", (None, None))
        return step if owner is self else None

    def _step_of(self, leaf: Any) -> Any:
        """The step that made a tensor or a size; other leaves as they are."""
        if isinstance(leaf, TrackedInt | TrackedFloat):
            if leaf.tracker is not self:
                return plain(leaf)
            if getattr(leaf, "step", None) is None:
                op, args = leaf.origin
                leaf.step = self._add(Kind.CALL, op, args, {}, plain(leaf), operation_name(op))
            return leaf.step
        if not isinstance(leaf, Tensor):
            return leaf
        step = self._recorded(leaf)
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
        """Raise Unseen for a tensor that was computed from inputs by what torch did not tell."""
        for tensor in tensors:
            known = self._recorded(tensor) is not None or id(tensor) in self._paths
            if not known and (
                tensor.is_meta or tensor.grad_fn is not None or self._origins.is_unrecorded(tensor)
            ):
                raise UnrecordedTensor(
                    f"a tensor of shape {tuple(tensor.shape)} comes from an operation that is not "
                    "seen, such as compiled code"
                )


def shape_of(leaf: Any) -> Any:
    """A tensor as a shape of its own; other leaves as plain values."""
    if not isinstance(leaf, Tensor):
        return plain(leaf)
    return leaf.detach() if leaf.is_meta else torch.empty_like(leaf, device="meta").detach()


def _unaliased(result: Any, args: Any) -> Any:
    """What hands its argument on unchanged makes a tensor of its own all the same."""
    return result.view_as(result) if any(result is one for one in args) else result


def _is_viewed(tensor: Tensor) -> bool:
    """Whether others may see what is written into a tensor."""
    return tensor._base is not None or getattr(tensor, "_viewed", False)


_shape = Tensor.shape.__get__


def _devices(network: nn.Module) -> Iterator[Tensor]:
    yield from (t for t in (*network.parameters(), *network.buffers()) if not t.is_meta)
