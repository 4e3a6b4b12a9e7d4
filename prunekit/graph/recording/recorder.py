"""Run a copy of a network for real and record every step, whatever Python is in between.

`TorchFunctionMode` reports functions and methods of torch; patched `forward`s report modules. Where
the copy is on the meta device, only shapes are computed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph.recording.copies import release_tensors
from prunekit.graph.recording.execution import (
    Execution,
    is_in_place,
    is_viewed,
    shape_of,
    unaliased,
)
from prunekit.graph.recording.hooks import ObservedModule, calls_observed
from prunekit.graph.recording.nests import tensors_within, tree_map
from prunekit.graph.recording.shape_reads import item_taken
from prunekit.graph.recording.steps import (
    Kind,
    Recording,
    Step,
    current_line,
    operation_name,
    place_of,
    tensors_in,
)
from prunekit.graph.recording.tracking import UnrecordedTensor, plain
from prunekit.graph.recording.writer import StepWriter, named_tensors

_VIEW_ATTRIBUTES = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_SIZE_QUERIES = frozenset({"size", "numel", "nelement", "stride"})
_ACCESS = frozenset({"__get__", "__set__", "__delete__"})
_DEVICE_TYPES = {"is_meta": "meta", "is_cpu": "cpu", "is_cuda": "cuda", "is_mps": "mps"}
_VALUE_READS = frozenset(
    {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy"}
    | {"equal", "allclose", "is_nonzero", "__array__", "__complex__"}
    | {"__reduce_ex__", "__dlpack__"}
)
_FACTORIES: dict[str, Callable[..., Tensor]] = {
    **{"new_empty": torch.empty, "new_zeros": torch.zeros},
    **{"new_ones": torch.ones, "new_full": torch.full},
}


class Recorder(StepWriter, TorchFunctionMode):
    """Records one forward pass of `network`, a copy.

    `sizes` makes sizes remember how they were computed. `queried` collects what else the forward
    depends on: "training", "grad". `error` is what ended the pass early.
    """

    def __init__(self, network: nn.Module, sizes: bool = True) -> None:
        super().__init__(network, sizes)
        self.queried: set[str] = set()
        self.error: Exception | None = None
        self._current: tuple[Any, str] | None = None  # a callee, and its name or path
        self._current_inputs: list[Step] = []
        self._calls = 0
        devices = [tensor.device for _, tensor in self._named_tensors]
        self._device = next((d for d in devices if d.type != "meta"), torch.device("cpu"))
        self._execution = Execution(any(tensor.is_meta for tensor in network.parameters()))
        self._module_paths: dict[int, str] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """Call the network and return the recording; whatever the network raises is passed on."""
        for position, tensor in enumerate(tensors_in((args, kwargs))):
            self._register(tensor, self._add(Kind.INPUT, position, (), {}, shape_of(tensor)))
        try:
            with ExitStack() as stack:
                stack.enter_context(calls_observed(self, self.network))
                if not self._execution.shapes_only:
                    stack.enter_context(self._origins)
                stack.enter_context(self)
                result = self.network(*args, **kwargs)
            outputs = tuple(self._step_of(tensor) for tensor in tensors_within(result))
            self._add(Kind.OUTPUT, "output", (outputs,), {}, None)
            del result
        finally:
            self._end()
        return self.recording

    def _end(self) -> None:
        """Make sizes plain from now on, and release the meta tensors that are still held."""
        self._ended = True
        held = [tensor for tensor in (ref() for ref in self._meta_tensors) if tensor is not None]
        release_tensors(held, self.network)

    @property
    def parameters_unchanged(self) -> bool:
        """True if the copy still has its parameters; False if hooks of the user ran on it."""
        hooked = any(
            module._forward_hooks or module._forward_pre_hooks for module in self.network.modules()
        )
        paths = {id(tensor): path for path, tensor in named_tensors(self.network)}
        return not hooked and paths == self._paths

    def describe_current(self, place: str) -> str:
        """Return the call that failed and its place in the user's code, for messages."""
        if self._current is None:
            return place
        callee, name = self._current
        if isinstance(callee, nn.Module):
            return f" at {name}" if [*callee.children()] else f" at {name}, {callee!r}"
        return f" at {operation_name(callee) or name}{place.partition(' (')[0]}"

    def fail(self, reason: str, error: Exception) -> None:
        """End the recording of a pass that failed.

        The last step reads all results that nothing has read yet, and the inputs of the call that
        failed.
        """
        self.error, self.recording.failed = error, reason
        unread = [step for step in self.recording.steps if not step.users]
        self._add(Kind.OUTPUT, "output", ((*unread, *self._current_inputs),), {}, None)

    # functions and methods of torch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__iter__":
            func, name = Tensor.unbind, "unbind"
            return iter(self._observe(func, name, args, kwargs))
        return self._observe(func, name, args, kwargs)

    def _observe(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        inputs = self._input_steps((args, kwargs)) if name not in _ACCESS else []
        if name not in _ACCESS and not inputs:
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
            self._current_inputs = inputs
            return self._call(func, name, args, kwargs)
        finally:
            self._recording_step = before

    def _set_attribute(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Set an attribute of a tensor; setting `data` replaces its memory."""
        result = func(*args, **kwargs)
        if func.__self__.__name__ == "data":
            self.on_memory_replaced(*args)
        return result

    def on_memory_replaced(self, tensor: Tensor, source: Any) -> None:
        """Register a tensor that from now on shares the memory of another."""
        if self._input_steps((tensor, source)):
            with torch._C.DisableTorchFunction():
                if not isinstance(source, Tensor):
                    shape = tuple(tensor.shape)
                    raise UnrecordedTensor(f"memory is put into a tensor of shape {shape}")
                self._register(tensor, self._step_of(source))

    def _get_attribute(self, func: Callable[..., Any], attribute: str, args: Any) -> Any:
        """Read an attribute of a tensor: shapes are recorded, types and devices are plain."""
        if attribute == "device" and args[0].is_meta:
            return self._device
        if attribute in _DEVICE_TYPES and args[0].is_meta:
            return _DEVICE_TYPES[attribute] == self._device.type
        if attribute == "requires_grad":
            self.queried.add("grad")
        if self._input_steps(args) and attribute == "shape":
            return self._query_size(func, "shape", args, {})
        if self._input_steps(args) and attribute in _VIEW_ATTRIBUTES:
            with torch.no_grad():
                return self._record(getattr, "getattr", (args[0], attribute), {}, func(*args))
        return func(*args)

    def _query_size(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        size = func(*tree_map(args, plain), **tree_map(kwargs, plain))
        if not self._tracks_sizes:
            return size
        if name == "__len__":
            shape = self._query_size(_get_shape, "shape", args, {})
            self.on_decided(size, operator.getitem, (shape, 0))
            return size
        if name == "shape":
            step = self._record(getattr, "getattr", (args[0], "shape"), {}, size)
            step.item = item_taken()
        else:
            step = self._record(func, name, args, kwargs, size)
        if isinstance(size, int):
            return self._track_size(size, step)
        return torch.Size(
            [self.on_computed(n, operator.getitem, (step, index)) for index, n in enumerate(size)]
        )

    def _call(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        self._current = (func, name)
        if name in _VALUE_READS:
            self._note_value_read(args)
        result = self._execution.function(func, name, args, kwargs)
        self._current = None
        if name == "__setitem__":
            operation = None if is_viewed(args[0]) else "setitem"
            return self._record(func, operation, args, kwargs, args[0])
        if name in _VALUE_READS:
            self._add(Kind.CALL, func, args, kwargs, None, operation_name(func))
            return result
        if not isinstance(result, Tensor | tuple | list):
            return result
        if name in _FACTORIES and isinstance(result, Tensor):
            return self._create(_FACTORIES[name], args, kwargs, result)
        if not is_in_place(name, kwargs):
            result = unaliased(result, args)
        return self._record(func, operation_name(func), args, kwargs, result)

    def _note_value_read(self, args: Any) -> None:
        if any(step.kind is not Kind.CONSTANT for step in self._input_steps(args)):
            place = place_of(current_line())
            self.recording.notes[f"the forward reads values of tensors at {place}"] = None

    def _create(self, factory: Callable[..., Tensor], args: Any, kwargs: Any, result: Any) -> Any:
        """Record `x.new_zeros(...)` as `zeros(...)`, since x lends its type and no channels."""
        names = ("size", "fill_value", "dtype", "requires_grad")
        kwargs = {name: value for name, value in kwargs.items() if name in names}
        sizes, kwargs = args[1:], {**kwargs, "dtype": result.dtype}
        return self._record(factory, operation_name(factory), sizes, kwargs, result)

    # modules

    def on_mode_read(self, module: nn.Module) -> None:
        """Record that the forward read the mode of a module."""
        self.queried.add("training")

    def on_width_read(self, layer: nn.Module) -> None:
        """Record that the forward read how many channels a layer of the network has."""
        if not self._module_paths:
            self._module_paths = {id(module): path for path, module in self.network.named_modules()}
        if id(layer) in self._module_paths and self._stack:
            self.recording.widths[self._module_paths[id(layer)], self._stack[-1][1]] = None

    def on_module(
        self, call: ObservedModule, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """Run the forward of a module, of a layer as one step, and return its result."""
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
        self._current_inputs = self._input_steps((args, kwargs))
        self._check_recorded(tensors_in((args, kwargs)))
        result = self._execution.layer(module, forward, args, kwargs)
        self._current = None
        if not getattr(module, "inplace", False):
            result = unaliased(result, args)
        computed = (tensor for tensor in call.tensors() if self._producer(tensor))
        args = (*args, *computed, *call.new_tensors())
        return self._record(path, None, args, kwargs, result, Kind.LAYER)

    # results

    def _record(
        self,
        target: Any,
        name: str | None,
        args: Any,
        kwargs: Any,
        result: Any,
        kind: Kind = Kind.CALL,
    ) -> Any:
        """Record a step and return its result, whose tensors are known from then on.

        For queries of sizes the step itself is returned.
        """
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


_get_shape = vars(torch._C.TensorBase)["shape"].__get__
