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

from prunekit.graph.recording.execution import Execution, in_place
from prunekit.graph.recording.leaks import forget
from prunekit.graph.recording.lines import current_line, place_of
from prunekit.graph.recording.listening import Heard, listening
from prunekit.graph.recording.nests import leaves_in, mapped, tensors_within
from prunekit.graph.recording.origins import Origins, Unseen
from prunekit.graph.recording.sizes import Ratio, Size, plain, tracked
from prunekit.graph.recording.steps import Kind, Recording, Step, operation_name, tensors_among

_MOVED = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_ASKED_SIZES = frozenset({"size", "numel", "nelement", "stride"})
_ACCESS = frozenset({"__get__", "__set__", "__delete__"})
_PLACES = {"device": "", "is_meta": "meta", "is_cpu": "cpu", "is_cuda": "cuda", "is_mps": "mps"}
_VALUES = frozenset(
    {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy"}
    | {"equal", "allclose", "is_nonzero", "__array__", "__complex__"}
    | {"__reduce_ex__", "__dlpack__"}
)
_LENT = {
    **{"new_empty": torch.empty, "new_zeros": torch.zeros},
    **{"new_ones": torch.ones, "new_full": torch.full},
}


class Recorder(TorchFunctionMode):
    """Writes down a run of `twin`; `sizes` says whether sizes remember where they are from."""

    def __init__(self, twin: nn.Module, sizes: bool = True) -> None:
        super().__init__()
        self.twin = twin
        self.recording = Recording()
        self.asked: set[str] = set()  # what else the forward depends on: "training", "grad"
        self._trying: tuple[Any, str] | None = None  # what is being called, and its name or path
        self.error: Exception | None = None
        self._follows = sizes
        self._inside = False  # a layer, which is not looked into
        self._busy = False  # with a step that is written down
        self._ended = False
        self._origins = Origins(self._recorded, lambda: self._inside or self._busy)
        self._shapes: list[weakref.ref[Tensor]] = []  # that the run has made
        self._stack: list[tuple[int, str]] = []
        self._calls = 0
        named = [*twin.named_parameters(), *twin.named_buffers()]
        self._paths = {id(tensor): path for path, tensor in named}
        self._tensors: dict[str, Step] = {}
        self._constants: dict[tuple[int, int], tuple[Tensor, Step]] = {}
        self._device = next((one.device for one in _devices(twin)), torch.device("cpu"))
        self._execution = Execution(any(tensor.is_meta for tensor in twin.parameters()))
        self._given: list[Step] = []
        self._names: dict[int, str] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """The steps of one call of the network; whatever it raises is passed on."""
        for place, tensor in enumerate(tensors_among((args, kwargs))):
            self._register(tensor, self._add(Kind.INPUT, place, (), {}, shape_of(tensor)))
        try:
            with ExitStack() as stack:
                stack.enter_context(listening(self, self.twin))
                if not self._execution.shapes_only:
                    stack.enter_context(self._origins)
                stack.enter_context(self)
                found = self.twin(*args, **kwargs)
            returned = tuple(self._step_of(tensor) for tensor in tensors_within(found))
            self._add(Kind.OUTPUT, "output", (returned,), {}, None)
            del found
        finally:
            self._end()
        return self.recording

    def _end(self) -> None:
        """Sizes are plain from now on, and nobody keeps shapes of this run."""
        self._ended = True
        kept = [one for one in (known() for known in self._shapes) if one is not None]
        forget(kept, self.twin)

    @property
    def left_alone(self) -> bool:
        """Whether the run left the parameters of the copy as they were, as hooks may not."""
        named = [*self.twin.named_parameters(), *self.twin.named_buffers()]
        hooked = any(one._forward_hooks or one._forward_pre_hooks for one in self.twin.modules())
        return not hooked and {id(tensor): path for path, tensor in named} == self._paths

    def trying(self, place: str) -> str:
        """What failed, with its place in the user's code."""
        if self._trying is None:
            return place
        called, name = self._trying
        if isinstance(called, nn.Module):
            return f" at {name}" if [*called.children()] else f" at {name}, {called!r}"
        return f" at {operation_name(called) or name}{place.partition(' (')[0]}"

    def fail(self, why: str, error: Exception) -> None:
        """End a run that failed: what nothing has read yet, or was being read, is its last step."""
        self.error, self.recording.failed = error, why
        read = [step for step in self.recording.steps if not step.users]
        self._add(Kind.OUTPUT, "output", ((*read, *self._given),), {}, None)

    # what torch tells

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__iter__":
            func, name = Tensor.unbind, "unbind"
            return iter(self._seen(func, name, args, kwargs))
        return self._seen(func, name, args, kwargs)

    def _seen(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        known = self._known((args, kwargs)) if name not in _ACCESS else []
        if name not in _ACCESS and not known:
            self._check_seen(tensors_among((args, kwargs)))
            return func(*args, **kwargs)
        before, self._busy = self._busy, True
        try:
            if name == "__get__":
                return self._read(func, func.__self__.__name__, args)
            if name in _ACCESS:
                return self._written(func, args, kwargs)
            if name in _ASKED_SIZES or name == "__len__":
                return self._asked_size(func, name, args, kwargs)
            self._given = known
            return self._called(func, name, args, kwargs)
        finally:
            self._busy = before

    def _written(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """An attribute of a tensor that is set: its numbers may become those of another."""
        found = func(*args, **kwargs)
        if func.__self__.__name__ == "data":
            self.replaced(*args)
        return found

    def replaced(self, tensor: Tensor, source: Any) -> None:
        """The memory of a tensor is from now on that of another."""
        if self._known((tensor, source)):
            with torch._C.DisableTorchFunction():
                if not isinstance(source, Tensor):
                    raise Unseen(f"memory is put into a tensor of shape {tuple(tensor.shape)}")
                self._register(tensor, self._step_of(source))

    def _read(self, func: Callable[..., Any], attribute: str, args: Any) -> Any:
        """An attribute of a tensor: shapes are followed, types and devices are plain."""
        if attribute in _PLACES and args[0].is_meta:
            return (
                self._device if attribute == "device" else _PLACES[attribute] == self._device.type
            )
        if attribute == "requires_grad":
            self.asked.add("grad")
        if self._known(args) and attribute == "shape":
            return self._asked_size(func, "shape", args, {})
        if self._known(args) and attribute in _MOVED:
            with torch.no_grad():
                return self._finish(getattr, "getattr", (args[0], attribute), {}, func(*args))
        return func(*args)

    def _asked_size(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        found = func(*mapped(args, plain), **mapped(kwargs, plain))
        if not self._follows:
            return found
        if name == "__len__":
            self.decided(found, operator.getitem, (self._asked_size(_shape, "shape", args, {}), 0))
            return found
        if name == "shape":
            step = self._finish(getattr, "getattr", (args[0], "shape"), {}, found)
        else:
            step = self._finish(func, name, args, kwargs, found)
        if isinstance(found, int):
            return self._followed(found, step)
        items = [
            self.computed(size, operator.getitem, (step, index)) for index, size in enumerate(found)
        ]
        return torch.Size(items)

    def _called(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        self._trying = (func, name)
        if name in _VALUES and any(step.kind is not Kind.CONSTANT for step in self._known(args)):
            told = place_of(current_line())
            self.recording.notes[f"the forward reads values of tensors at {told}"] = None
        result = self._execution.function(func, name, args, kwargs)
        self._trying = None
        if name == "__setitem__":
            name = None if _shared(args[0]) else "setitem"
            return self._finish(func, name, args, kwargs, args[0])
        if name in _VALUES:  # whose entries the forward went on with
            self._add(Kind.CALL, func, args, kwargs, None, operation_name(func))
            return result
        if not isinstance(result, Tensor | tuple | list):
            return result
        if name in _LENT:
            return self._lent(name, args, kwargs, result)
        if not in_place(name, kwargs):
            result = _of_its_own(result, args)
        return self._finish(func, operation_name(func), args, kwargs, result)

    def _lent(self, name: str, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """A tensor that borrows its type from another, with nothing of its channels."""
        names = ("size", "fill_value", "dtype", "requires_grad")
        kwargs = {key: one for key, one in kwargs.items() if key in names}
        sizes, kwargs = args[1:], {**kwargs, "dtype": result.dtype}
        return self._finish(_LENT[name], operation_name(_LENT[name]), sizes, kwargs, result)

    # what modules tell

    def mode_read(self, module: nn.Module) -> None:
        """The forward went by its mode."""
        self.asked.add("training")

    def width_read(self, layer: nn.Module) -> None:
        """The forward read how many channels a layer of its own has."""
        if not self._names:
            self._names = {id(module): path for path, module in self.twin.named_modules()}
        if id(layer) in self._names and self._stack:
            self.recording.widths[self._names[id(layer)], self._stack[-1][1]] = None

    def module(self, call: Heard, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The call of a module's forward."""
        if self._inside:
            return forward(*args, **kwargs)
        self._calls += 1
        self._stack.append((self._calls, call.path))
        try:
            if call.layer:
                self._inside = True
                with torch._C.DisableTorchFunction():
                    return self._layer(call, forward, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self._inside = False
            self._stack.pop()

    def _layer(self, call: Heard, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        module, path = call.module, call.path
        self._trying = (module, path)
        self._given = self._known((args, kwargs))
        self._check_seen(tensors_among((args, kwargs)))
        result = self._execution.layer(module, forward, args, kwargs)
        self._trying = None
        if not getattr(module, "inplace", False):
            result = _of_its_own(result, args)
        args = (*args, *(one for one in call.held() if self._recorded(one)), *call.strangers())
        return self._finish(path, None, args, kwargs, result, Kind.LAYER)

    # what sizes tell

    def computed(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A number that was computed from sizes; it becomes a step when it is used."""
        return tracked(value, self, op, args) if self._follows and not self._ended else value

    def decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Mark what the forward went on with."""
        if self._follows and not self._ended:
            with torch._C.DisableTorchFunction():
                self._add(Kind.CALL, op, args, {}, value, operation_name(op)).guard = True

    def _followed(self, value: int, step: Step) -> Any:
        size = tracked(value, self, operator.getitem, ())
        size.step = step
        return size

    # steps

    def _finish(
        self,
        target: Any,
        name: str | None,
        args: Any,
        kwargs: Any,
        result: Any,
        kind: Kind = Kind.CALL,
    ) -> Any:
        """Write a step down; tensors in its result are known from then on."""
        step = self._add(kind, target, args, kwargs, mapped(result, shape_of), name)
        if (name == "getattr" and not tensors_among((result,))) or name in _ASKED_SIZES:
            return step
        self._spread(result, step)
        return result

    def _spread(self, result: Any, step: Step) -> None:
        if isinstance(result, Tensor):
            self._register(result, step)
        elif isinstance(result, tuple | list):
            for index, item in enumerate(result):
                if tensors_among((item,)):
                    part = self._add(
                        *(Kind.CALL, operator.getitem, (step, index), {}),
                        *(mapped(item, shape_of), "getitem"),
                    )
                    self._spread(item, part)

    def _add(
        self, kind: Kind, target: Any, args: Any, kwargs: Any, result: Any, name: str | None = None
    ) -> Step:
        args, kwargs = mapped((args, kwargs), self._step_of)
        step = Step(kind, target, args, kwargs, result, name, tuple(self._stack), current_line())
        return self.recording.add(step)

    def _register(self, tensor: Tensor, step: Step) -> None:
        tensor._recorded = (self, step)
        if tensor.is_meta and step.kind is not Kind.INPUT:
            self._shapes.append(weakref.ref(tensor))
        if tensor._base is not None:
            tensor._base._viewed = True

    def _known(self, nest: Any) -> list[Step]:
        """The steps of tensors and sizes in a nest, as far as they have some."""
        found = []
        for leaf in leaves_in(nest, (Tensor, Size, Ratio)):
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
        if isinstance(leaf, Size | Ratio):
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
        self._check_seen([tensor])
        key = (id(tensor), tensor._version)  # it may be changed in place
        if key not in self._constants:
            step = self._add(Kind.CONSTANT, tensor.detach().clone(), (), {}, shape_of(tensor))
            self._constants[key] = (tensor, step)
        return self._constants[key][1]

    def _check_seen(self, tensors: list[Tensor]) -> None:
        """Raise Unseen for a tensor that was computed from inputs by what torch did not tell."""
        for tensor in tensors:
            known = self._recorded(tensor) is not None or id(tensor) in self._paths
            if not known and (
                tensor.is_meta or tensor.grad_fn is not None or self._origins.unseen(tensor)
            ):
                raise Unseen(
                    f"a tensor of shape {tuple(tensor.shape)} comes from an operation that is not "
                    "seen, such as compiled code"
                )


def shape_of(leaf: Any) -> Any:
    """A tensor as a shape of its own; other leaves as plain values."""
    if not isinstance(leaf, Tensor):
        return plain(leaf)
    return leaf.detach() if leaf.is_meta else torch.empty_like(leaf, device="meta").detach()


def _of_its_own(result: Any, args: Any) -> Any:
    """What hands its argument on unchanged makes a tensor of its own all the same."""
    return result.view_as(result) if any(result is one for one in args) else result


def _shared(tensor: Tensor) -> bool:
    """Whether others may see what is written into a tensor."""
    return tensor._base is not None or getattr(tensor, "_viewed", False)


_shape = Tensor.shape.__get__


def _devices(twin: nn.Module) -> Iterator[Tensor]:
    yield from (t for t in (*twin.parameters(), *twin.buffers()) if not t.is_meta)
