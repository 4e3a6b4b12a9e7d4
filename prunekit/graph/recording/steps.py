"""A recording: the steps of one forward pass in order, and which step reads which."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from types import FrameType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunekit.graph.recording.nests import leaves_in, tree_map


class Kind(Enum):
    """The kind of a step."""

    INPUT = "input"  # a tensor among the arguments of the network
    TENSOR = "tensor"  # a parameter or buffer, by its path
    CONSTANT = "constant"  # any other tensor that is not computed from these
    LAYER = "layer"  # the call of a module that is one step, by its path
    CALL = "call"  # the call of a function or method
    OUTPUT = "output"  # the result of the network


STORED = (Kind.TENSOR, Kind.CONSTANT)  # tensors that exist before the pass


@dataclass(eq=False, slots=True, repr=False)
class Step:
    """One step of a forward pass. In `args` and `kwargs`, steps stand for tensors and sizes.

    `result` has meta tensors in place of all tensors. `calls` are the modules in whose forward the
    step happened, outermost first, as the number of the call and the path. `is_query` says that the
    result is a size or a type, so that it holds no channels; `guard` says that the forward went on
    with its plain value, as in a branch. `item` is the only size that the forward takes off a
    shape, where that is known.
    """

    kind: Kind
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None
    name: str | None = None  # of the operation in torch
    calls: tuple[tuple[int, str], ...] = ()
    line: tuple[str, int] | None = None
    guard: bool = False
    is_query: bool = False
    item: int | None = None
    sources: tuple[Step, ...] = ()
    users: list[Step] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The place of the step in the user's code, for messages."""
        return place_of(self.line)

    def __str__(self) -> str:
        if self.kind is not Kind.CALL:
            return str(self.target)
        return f"{self.name or getattr(self.target, '__name__', '')} at {self.where}"


@dataclass(eq=False)
class Recording:
    """All steps of one forward pass.

    `failed` says, after the name of the network, how a pass ended early. `under` names how the pass
    differs from the usual one, for messages. `widths` are the layers whose channel numbers the
    forward read off attributes, each with the module whose forward did.
    """

    steps: list[Step] = field(default_factory=list)
    failed: str | None = None
    notes: dict[str, None] = field(default_factory=dict)
    under: str = ""
    widths: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, step: Step) -> Step:
        """Append a step, and add it to the users of its sources."""
        step.is_query = step.kind is Kind.CALL and not leaves_in(step.result, Tensor)
        step.sources = tuple(dict.fromkeys(steps_in((step.args, step.kwargs))))
        for source in step.sources:
            source.users.append(step)
        self.steps.append(step)
        return step

    @property
    def output(self) -> Step:
        """The last step."""
        return self.steps[-1]

    def lines(self) -> list[str]:
        """Return the steps as text, the same in every process; sources are numbers of steps."""
        numbers = {step: f"%{number}" for number, step in enumerate(self.steps)}

        def plain(leaf: Any) -> Any:
            if isinstance(leaf, Tensor):
                return tuple(leaf.shape)
            return numbers[leaf] if isinstance(leaf, Step) else leaf

        return [
            f"{step.kind.value} {step.name or plain(step.target)} "
            f"{tree_map((step.args, step.kwargs), plain)}"
            for step in self.steps
        ]

    def calls_same(self, other: Recording) -> bool:
        """Return whether another pass made the same calls on the same values, in any sizes."""
        return len(self._called) == len(other._called) and self._outline == other._outline

    @cached_property
    def _called(self) -> list[Step]:
        return [step for step in self.steps if step.kind is not Kind.CONSTANT]

    @cached_property
    def _outline(self) -> list[tuple[Any, ...]]:
        positions = {step: position for position, step in enumerate(self.steps)}
        return [
            (
                *callee(step),
                literals(step, _POSITIONAL),
                *(positions[source] for source in step.sources),
            )
            for step in self._called
        ]


def callee(step: Step) -> tuple[Any, ...]:
    """Return what a step calls, equal in all passes; functions made in a forward count by name."""
    name = None if step.kind is Kind.CONSTANT else step.name or step.target
    return step.kind, getattr(name, "__qualname__", name)


def literals(step: Step, kinds: Collection[type] = (int, float, bool, str)) -> Any:
    """Return the arguments of a step with None in place of all but literals of these types."""
    if not step.args and not step.kwargs:
        return ()
    return tree_map((step.args, step.kwargs), lambda leaf: leaf if type(leaf) in kinds else None)


_POSITIONAL = frozenset({int, str})  # dimensions, channel numbers and modes


def without_repeats(recordings: Sequence[Recording]) -> list[Recording]:
    """Return the recordings with a line of code, or a layer, that none before them has."""
    covered: set[Any] = set()
    novel = []
    for recording in recordings:
        lines = {(step.line, step.name or str(step.target)) for step in recording.steps}
        if not lines <= covered:
            novel.append(recording)
            covered |= lines
    return novel


def steps_in(nest: Any) -> list[Step]:
    """Return all steps in nested arguments, in order."""
    return leaves_in(nest, Step)


def with_results(nest: Any, results: dict[Step, Any]) -> Any:
    """Return nested arguments with the results of steps in place of the steps."""
    return tree_map(nest, lambda leaf: results[leaf] if type(leaf) is Step else leaf)


_MODULES = (operator, torch.special, torch, functional)
NAMES: dict[Any, str] = {
    function: name
    for module in _MODULES
    for name, function in vars(module).items()
    if not name.startswith("__")
    and callable(function)
    and not isinstance(function, type)
    and function.__hash__ is not None
} | {getattr: "getattr"}
NAMES |= {
    method: method.__name__
    for method in vars(torch._C.TensorBase).values()
    if isinstance(method, MethodDescriptorType | WrapperDescriptorType)
}
_AUGMENTED = ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_SPELLINGS = {f"i{name}": name for name in _AUGMENTED} | {f"r{name}": name for name in _AUGMENTED}


def operation_name(func: Callable[..., Any]) -> str | None:
    """Return the name of a function in torch, the same for functions, methods and operators.

    Return None for functions that are not torch's.
    """
    name = NAMES.get(func)
    if name is None:
        name = _own_name(func)
    if name is None or (name.startswith("_") and not name.startswith("__")):
        return name
    if name.startswith("__"):
        name = name.strip("_")
    name = name.rstrip("_")
    return _SPELLINGS.get(name, name)


def _own_name(func: Callable[..., Any]) -> str | None:
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        space, _, name = str(func).partition(".")
        return name.split(".")[0] if space == "aten" else str(func)
    owner = getattr(func, "__objclass__", None) or getattr(func, "__module__", None)
    is_torch = isinstance(owner, type) and issubclass(owner, torch._C.TensorBase)
    is_torch = is_torch or str(owner).startswith("torch")
    return getattr(func, "__name__", None) if is_torch else None


def tensors_in(nests: Iterable[Any]) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return leaves_in(tuple(nests), Tensor)


Line = tuple[str, int]

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parents[1]}{os.sep}"


def place_of(line: Line | None) -> str:
    """Return a line of the user's code, for messages."""
    return f"{Path(line[0]).name}:{line[1]}" if line else "forward"


@cache
def in_torch(file: str) -> bool:
    """Return whether a source file is part of torch or of the recorder."""
    return file.startswith((_TORCH, _HERE, "<"))


def current_line() -> Line | None:
    """Return the innermost line of the user's code, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and in_torch(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
