"""Sizes that remember how they were computed, so that a recorded run can be played for others."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol

Number = int | float


class Tracker(Protocol):
    """Hears what a forward does with sizes."""

    def on_computed(self, value: Number, op: Callable[..., Any], args: tuple[Any, ...]) -> Number:
        """A number that was computed from sizes."""

    def on_decided(self, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """The forward went on with a plain value: a branch, a loop or a number of its own."""


class _Tracked:
    """What integers and floats have in common; arithmetic is tracked, comparisons are decisions."""

    tracker: Tracker
    origin: tuple[Callable[..., Any], tuple[Any, ...]]

    def __hash__(self) -> int:
        raise TypeError("a size that is tracked has no hash, so that no cache keeps it")

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __reduce__(self) -> Any:
        return type(plain(self)), (plain(self),)


class TrackedInt(_Tracked, int):
    """An integer that was read off a tensor's shape, or computed from one."""

    def __int__(self) -> int:
        return _decide(self, plain(self), int, (self,))

    def __float__(self) -> float:
        return _decide(self, float(plain(self)), float, (self,))


class TrackedFloat(_Tracked, float):
    """A float that was computed from sizes."""

    def __int__(self) -> int:
        return _decide(self, int(plain(self)), int, (self,))

    def __float__(self) -> float:
        return _decide(self, plain(self), float, (self,))


def track(value: Number, tracker: Tracker, op: Callable[..., Any], args: tuple[Any, ...]) -> Number:
    """The number with its origin: what was called on what; truth values are plain."""
    if isinstance(value, bool):
        return value
    found = TrackedInt(value) if isinstance(value, int) else TrackedFloat(value)
    found.tracker, found.origin = tracker, (op, args)
    return found


def plain(value: Any) -> Any:
    """A number without its origin; anything else as it is."""
    if isinstance(value, TrackedInt):
        return int.__int__(value)
    return float.__float__(value) if isinstance(value, TrackedFloat) else value


def _decide(one: _Tracked, value: Any, op: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    one.tracker.on_decided(value, op, args)
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
    _kind.__round__ = _computes(round)
    _kind.__bool__ = _decides(operator.truth)
    _kind.__divmod__ = lambda self, other: (self // other, self % other)
