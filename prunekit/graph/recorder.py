"""Runs a copy of a network for real and writes down every step, whatever Python is in between.

Functions and methods of torch come by through `TorchFunctionMode`, modules through their `forward`.
Where the copy holds shapes only, nothing is computed but them.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph.nests import leaves_in, mapped, tensors_within
from prunekit.graph.shapes import quick_call, quick_layer
from prunekit.graph.sizes import Ratio, Size, plain, tracked
from prunekit.graph.steps import Kind, Recording, Step, operation, tensors_among
from prunekit.graph.twin import is_layer

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parent}{os.sep}"
_MOVED = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
_ASKED_SIZES = frozenset({"size", "numel", "nelement"})
_VALUES = frozenset(
    {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__contains__", "numpy"}
    | {"equal", "allclose", "is_nonzero", "__array__", "__complex__"}
)
_MADE = frozenset({"zeros", "ones", "empty", "full", "rand", "randn", "randint", "normal"})
_LENT = {
    **{"new_empty": torch.empty, "new_zeros": torch.zeros},
    **{"new_ones": torch.ones, "new_full": torch.full},
}
_PLACED = frozenset({"to", "cuda", "cpu", "type", "new_tensor"})


class Unseen(Exception):
    """A tensor turned up that no recorded operation made."""


class Recorder(TorchFunctionMode):
    """Writes down a run of `twin`; `sizes` says whether sizes remember where they are from."""

    def __init__(self, twin: nn.Module, sizes: bool = True) -> None:
        super().__init__()
        self.twin = twin
        self.recording = Recording()
        self.asked: set[str] = set()  # what else the forward depends on: "training", "grad"
        self.trying = ""  # what is being called, for messages
        self.error: Exception | None = None
        self._follows = sizes
        self._inside = False  # a layer, which is not looked into
        self._stack: list[tuple[int, str]] = []
        self._calls = 0
        named = [*twin.named_parameters(), *twin.named_buffers()]
        self._paths = {id(tensor): path for path, tensor in named}
        self._tensors: dict[str, Step] = {}
        self._constants: dict[int, tuple[Tensor, Step]] = {}
        self._device = next((one.device for one in _devices(twin)), torch.device("cpu"))
        self._shapes_only = any(tensor.is_meta for tensor in twin.parameters())
        self._given: list[Step] = []
        self._shadows: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """The steps of one call of the network; whatever it raises is passed on."""
        for place, tensor in enumerate(tensors_among((args, kwargs))):
            self._register(tensor, self._add(Kind.INPUT, place, (), {}, shape_of(tensor)))
        with ExitStack() as stack:
            stack.enter_context(_listening(self))
            stack.enter_context(self)
            found = self.twin(*args, **kwargs)
        returned = tuple(self._step_of(tensor) for tensor in tensors_within(found))
        self._add(Kind.OUTPUT, "output", (returned,), {}, None)
        return self.recording

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
        if name == "__get__":
            return self._read(func, func.__self__.__name__, args)
        if name in ("__set__", "__delete__"):
            return func(*args, **kwargs)
        known = [*self._known(args), *self._known(kwargs)]
        if not known:
            self._check_seen(tensors_among((args, kwargs)))
            return func(*args, **kwargs)
        if name in _ASKED_SIZES or name == "__len__":
            return self._asked_size(func, name, args, kwargs)
        return self._called(func, name, args, kwargs)

    def _read(self, func: Callable[..., Any], attribute: str, args: Any) -> Any:
        """An attribute of a tensor: shapes are followed, types and devices are plain."""
        if attribute == "device" and args[0].is_meta:
            return self._device
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
        self.trying = f"{operation(func) or name} at {place_of(_line())}"
        self._given = self._known((args, kwargs))
        if name in _VALUES and any(step.kind is not Kind.CONSTANT for step in self._known(args)):
            told = place_of(_line())
            self.recording.notes[f"the forward reads values of tensors at {told}"] = None
        result = self._execute(func, name, args, kwargs)
        self.trying = ""
        if name == "__setitem__":
            return self._finish(func, "setitem", args, kwargs, args[0])
        if name in _VALUES:  # whose entries the forward went on with
            self._add(Kind.CALL, func, args, kwargs, None, operation(func))
            return result
        if not isinstance(result, Tensor | tuple | list):
            return result
        if name in _LENT:
            return self._lent(name, args, kwargs, result)
        if not _in_place(name, args, kwargs):
            result = _of_its_own(result, args)
        return self._finish(func, operation(func), args, kwargs, result)

    def _lent(self, name: str, args: Any, kwargs: Any, result: Tensor) -> Tensor:
        """A tensor that borrows its type from another, with nothing of its channels."""
        names = ("size", "fill_value", "dtype", "requires_grad")
        kwargs = {key: one for key, one in kwargs.items() if key in names}
        sizes, kwargs = args[1:], {**kwargs, "dtype": result.dtype}
        return self._finish(_LENT[name], operation(_LENT[name]), sizes, kwargs, result)

    def _execute(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        args, kwargs = mapped(args, plain), mapped(kwargs, plain)
        tensors = tensors_among((args, kwargs))
        meta = any(tensor.is_meta for tensor in tensors)
        if meta:
            args, kwargs = mapped((args, kwargs), self._shadow)
            if name in _PLACED:
                args = (args[0], *mapped(args[1:], _off_device))
                return _moved(func, name, args, kwargs)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": torch.device("meta")}
            quick = quick_call(operation(func), name, args, kwargs)
            if quick is not None:
                return quick
        elif name in _MADE and self._shapes_only:
            kwargs = {**kwargs, "device": torch.device("meta")}
        return func(*args, **kwargs)

    # what modules tell

    def module(
        self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The call of a module's forward."""
        if self._inside:
            return forward(*args, **kwargs)
        self._calls += 1
        self._stack.append((self._calls, path))
        try:
            if is_layer(module):
                self._inside = True
                with torch._C.DisableTorchFunction():
                    return self._layer(module, path, forward, args, kwargs)
            return forward(*args, **kwargs)
        finally:
            self._inside = False
            self._stack.pop()

    def _layer(
        self, module: nn.Module, path: str, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        self.trying = f"{path}, {module!r}" if not [*module.children()] else path
        self._given = self._known((args, kwargs))
        self._check_seen(tensors_among((args, kwargs)))
        given, named = mapped((args, kwargs), plain)
        result = None
        if any(tensor.is_meta for tensor in tensors_among((given, named))):
            given, named = mapped((given, named), self._shadow)
            result = quick_layer(module, given, named)
        if result is None:
            result = forward(*given, **named)
        self.trying = ""
        if not getattr(module, "inplace", False):
            result = _of_its_own(result, args)
        return self._finish(path, None, args, kwargs, result, Kind.LAYER)

    # what sizes tell

    def computed(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A number that was computed from sizes; it becomes a step when it is used."""
        return tracked(value, self, op, args) if self._follows else value

    def decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Mark what the forward went on with."""
        if self._follows:
            with torch._C.DisableTorchFunction():
                self._add(Kind.CALL, op, args, {}, value, operation(op)).guard = True

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
        step = Step(kind, target, args, kwargs, result, name, tuple(self._stack), _line())
        return self.recording.add(step)

    def _register(self, tensor: Tensor, step: Step) -> None:
        tensor._recorded = (self, step)

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
                leaf.step = self._add(Kind.CALL, op, args, {}, plain(leaf), operation(op))
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
        known = self._constants.get(id(tensor))
        if known is None:
            step = self._add(Kind.CONSTANT, tensor.detach(), (), {}, shape_of(tensor))
            known = self._constants[id(tensor)] = (tensor, step)
        return known[1]

    def _check_seen(self, tensors: list[Tensor]) -> None:
        """Raise Unseen for a tensor that was computed from inputs by what torch did not tell."""
        for tensor in tensors:
            known = self._recorded(tensor) is not None or id(tensor) in self._paths
            if not known and (tensor.is_meta or tensor.grad_fn is not None):
                raise Unseen(
                    f"a tensor of shape {tuple(tensor.shape)} comes from an operation that is not "
                    "seen, such as compiled code"
                )

    def _shadow(self, leaf: Any) -> Any:
        """A tensor of numbers as a shape, for what meets shapes."""
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        known = self._shadows.get(id(leaf))
        if known is None:
            known = self._shadows[id(leaf)] = (leaf, leaf.detach().to("meta"))
        return known[1]


def shape_of(leaf: Any) -> Any:
    """A tensor as a shape of its own; other leaves as plain values."""
    if not isinstance(leaf, Tensor):
        return plain(leaf)
    return leaf.detach() if leaf.is_meta else torch.empty_like(leaf, device="meta").detach()


def _in_place(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a function changes its first argument."""
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name.startswith("__i") or bool(kwargs.get("inplace")) or any(a is True for a in args)


def _of_its_own(result: Any, args: Any) -> Any:
    """What hands its argument on unchanged makes a tensor of its own all the same."""
    return result.view_as(result) if any(result is one for one in args) else result


def place_of(line: tuple[str, int] | None) -> str:
    """A line of the user's code, for messages."""
    return f"{Path(line[0]).name}:{line[1]}" if line else "forward"


def in_torch(file: str) -> bool:
    """Whether a source file is torch's, or one of the recorder: no line to show a user."""
    return file.startswith((_TORCH, _HERE, "<"))


def _line() -> tuple[str, int] | None:
    frame = sys._getframe(2)
    while frame is not None and in_torch(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None


_shape = Tensor.shape.__get__


def _devices(twin: nn.Module) -> Iterator[Tensor]:
    yield from (t for t in (*twin.parameters(), *twin.buffers()) if not t.is_meta)


def _off_device(leaf: Any) -> Any:
    """Nothing in place of a device, the type of another tensor in place of it."""
    if isinstance(leaf, torch.device) or leaf in ("cpu", "cuda", "meta", "mps", "xpu"):
        return torch.device("meta")
    return leaf


def _moved(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
    if name in ("cuda", "cpu"):
        return args[0]
    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("meta")}
    return func(*args, **kwargs)


@contextmanager
def _listening(recorder: Recorder) -> Iterator[None]:
    """Inside it, every call of a forward in the network is told to the recorder."""
    changed = []
    for path, module in recorder.twin.named_modules():
        state = vars(module)
        changed.append((state, state.get("forward")))
        state["forward"] = _heard(recorder, module, path, module.forward)
    scripted, graded = torch._C.ScriptFunction.__call__, torch.is_grad_enabled

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        original = getattr(function, "_torchdynamo_inline", None)
        if original is None:
            return scripted(function, *args, **kwargs)
        return original(*args, **kwargs)

    def is_grad_enabled() -> bool:
        recorder.asked.add("grad")
        return graded()

    torch._C.ScriptFunction.__call__ = call
    torch.is_grad_enabled = is_grad_enabled
    try:
        yield
    finally:
        torch._C.ScriptFunction.__call__, torch.is_grad_enabled = scripted, graded
        for state, forward in changed:
            state.pop("forward") if forward is None else state.update(forward=forward)


def _heard(
    recorder: Recorder, module: nn.Module, path: str, forward: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return recorder.module(module, path, forward, args, kwargs)

    return call
