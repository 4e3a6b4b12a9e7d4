"""Track how sizes are computed, and which tensors come from operations that are not recorded."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.graph.recording.nests import leaves_in

Number = int | float
_T = TypeVar("_T")


class Tracker(Protocol):
    """Gets what a forward does with sizes."""

    def on_computed(self, value: Number, op: Callable[..., Any], args: tuple[Any, ...]) -> Number:
        """Return a number that was computed from sizes, tracked if it should be."""

    def on_decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Take note that the forward goes on with a plain value, as in a branch or a loop."""


class _Tracked:
    """The common part of both classes: arithmetic is tracked, comparisons are decisions."""

    tracker: Tracker
    origin: tuple[Callable[..., Any], tuple[Any, ...]]
    step: Any = None  # of the recording, once it is used

    def __hash__(self) -> int:
        raise TypeError("a size that is tracked has no hash, so that no cache keeps it")

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return type(plain(self)), (plain(self),)


class TrackedInt(_Tracked, int):
    """An integer that was read off a tensor's shape, or computed from one."""

    def __int__(self) -> int:
        return _decide(self, int.__int__(self), int, (self,))

    def __float__(self) -> float:
        return _decide(self, float(int.__int__(self)), float, (self,))


class TrackedFloat(_Tracked, float):
    """A float that was computed from sizes."""

    def __int__(self) -> int:
        return _decide(self, int(float.__float__(self)), int, (self,))

    def __float__(self) -> float:
        return _decide(self, float.__float__(self), float, (self,))


def track(value: Number, tracker: Tracker, op: Callable[..., Any], args: tuple[Any, ...]) -> Number:
    """Return the number with its origin, an operation and its arguments; a bool stays plain."""
    if isinstance(value, bool):
        return value
    number = TrackedInt(value) if isinstance(value, int) else TrackedFloat(value)
    number.tracker, number.origin = tracker, (op, args)
    return number


def plain(value: Any) -> Any:
    """Return a number without its origin, and any other value unchanged."""
    if isinstance(value, TrackedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TrackedFloat) else value


def _decide(number: _Tracked, value: _T, op: Callable[..., Any], args: tuple[Any, ...]) -> _T:
    number.tracker.on_decided(value, op, args)
    return value


def _computes(op: Callable[..., Any], swap: bool = False) -> Callable[..., Any]:
    def method(self: _Tracked, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        args = (*others, self) if swap else (self, *others)
        return self.tracker.on_computed(op(*map(plain, args)), op, args)

    return method


def _decides(op: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Tracked, *others: Any) -> Any:
        if not all(isinstance(other, int | float) for other in others):
            return NotImplemented
        args = (self, *others)
        return _decide(self, op(*map(plain, args)), op, args)

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
_OTHERS: dict[str, Callable[..., Any]] = {
    "round": _computes(round),
    "bool": _decides(operator.truth),
    "divmod": lambda self, other: (self // other, self % other),
}
for _kind in (TrackedInt, TrackedFloat):
    for _name in _BINARY:
        setattr(_kind, f"__{_name}__", _computes(getattr(operator, _name)))
        setattr(_kind, f"__r{_name}__", _computes(getattr(operator, _name), swap=True))
    for _name in ("neg", "abs", "pos"):
        setattr(_kind, f"__{_name}__", _computes(getattr(operator, _name)))
    for _name in ("ceil", "floor", "trunc"):
        setattr(_kind, f"__{_name}__", _computes(getattr(math, _name)))
    for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(_kind, f"__{_name}__", _decides(getattr(operator, _name)))
    for _name, _method in _OTHERS.items():
        setattr(_kind, f"__{_name}__", _method)


class UnrecordedTensor(Exception):
    """A tensor that no recorded operation computed."""


class UnrecordedOrigins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds the tensors that operations outside of recorded steps compute from recorded tensors.

    It gets every operation on numbers, also those in compiled code and in maps over batches.
    """

    def __init__(
        self, recorded: Callable[[Tensor], object], is_recording: Callable[[], bool]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorded = recorded
        self._is_recording = is_recording
        self._memories: dict[int, Any] = {}  # by address, held so that it is not reused

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._is_recording():
            return result
        inputs = leaves_in((args, kwargs or {}), Tensor)
        if any(self._recorded(tensor) or self.is_unrecorded(tensor) for tensor in inputs):
            for tensor in leaves_in(result, Tensor):
                memory = _memory(tensor)
                if memory is not None:
                    self._memories[memory._cdata] = memory
        return result

    def is_unrecorded(self, tensor: Tensor) -> bool:
        """Return whether an operation outside of recorded steps computed a tensor."""
        memory = _memory(tensor) if self._memories else None
        return memory is not None and memory._cdata in self._memories


def _memory(tensor: Tensor) -> Any:
    if tensor.is_meta or tensor.layout != torch.strided:
        return None
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # tensor subclasses without storage
        return None
