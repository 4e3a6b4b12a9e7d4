"""What a run of a network left behind: its steps, in order, and which reads what."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunekit.graph.recording.nests import leaves_in, tree_map


class Kind(Enum):
    """What a step is."""

    INPUT = "input"  # a tensor among the arguments of the network
    TENSOR = "tensor"  # a parameter or buffer, by its path
    CONSTANT = "constant"  # any other tensor that the forward did not compute from these
    LAYER = "layer"  # the call of a module that is not looked into, by its path
    CALL = "call"  # the call of a function or method
    OUTPUT = "output"  # what the network returned


STORED = (Kind.TENSOR, Kind.CONSTANT)  # what was there before the run


@dataclass(eq=False, slots=True, repr=False)
class Step:
    """One step of a run. In `args` and `kwargs` steps stand for the tensors and sizes they made.

    `result` has tensors on the meta device in place of all. `calls` are the modules in whose
    forward it happened, outermost first: the number of the call, and the path. `asks` says that it
    asks for a size or a type, so that nothing of the channels goes on; `guard` that the forward
    went on with the plain value of it, a branch for instance.
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
    sources: tuple[Step, ...] = ()
    users: list[Step] = field(default_factory=list)

    @property
    def where(self) -> str:
        """Where it stands in the user's code, for messages."""
        return f"{Path(self.line[0]).name}:{self.line[1]}" if self.line else "forward"

    def __str__(self) -> str:
        if self.kind is not Kind.CALL:
            return str(self.target)
        return f"{self.name or getattr(self.target, '__name__', '')} at {self.where}"


@dataclass(eq=False)
class Recording:
    """All steps of one run; `failed` says, behind the name of the network, how it ended early.

    `under` names what is unlike the usual run, for messages. `widths` are the layers whose channel
    numbers the forward read off their attributes, each with the module in whose forward it did.
    """

    steps: list[Step] = field(default_factory=list)
    failed: str | None = None
    notes: dict[str, None] = field(default_factory=dict)
    under: str = ""
    widths: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, step: Step) -> Step:
        """Append a step, and tell those that it reads."""
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
        """The steps in words, the same in every process; steps that are read go by their number."""
        places = {step: f"%{place}" for place, step in enumerate(self.steps)}

        def word(leaf: Any) -> Any:
            return (
                tuple(leaf.shape)
                if isinstance(leaf, Tensor)
                else places[leaf]
                if isinstance(leaf, Step)
                else leaf
            )

        return [
            f"{step.kind.value} {step.name or word(step.target)} "
            f"{tree_map((step.args, step.kwargs), word)}"
            for step in self.steps
        ]

    def calls_same(self, other: Recording) -> bool:
        """Whether the same was called on the same, whatever the sizes."""
        return len(self._called) == len(other._called) and self._outline == other._outline

    @cached_property
    def _called(self) -> list[Step]:
        return [step for step in self.steps if step.kind is not Kind.CONSTANT]

    @cached_property
    def _outline(self) -> list[tuple[Any, ...]]:
        places = {step: place for place, step in enumerate(self.steps)}
        return [
            (
                *callee(step),
                literals(step, _POSITIONAL),
                *(places[source] for source in step.sources),
            )
            for step in self._called
        ]


def callee(step: Step) -> tuple[Any, ...]:
    """What a step calls, the same in every run; functions made in a forward go by their name."""
    name = None if step.kind is Kind.CONSTANT else step.name or step.target
    return step.kind, getattr(name, "__qualname__", name)


def literals(step: Step, kinds: Collection[type] = (int, float, bool, str)) -> Any:
    """The arguments of a step with only literals of these types left in them."""
    if not step.args and not step.kwargs:
        return ()
    return tree_map((step.args, step.kwargs), lambda leaf: leaf if type(leaf) in kinds else None)


_POSITIONAL = frozenset(
    {int, str}
)  # dimensions, channels and modes: what they touch depends on these


def without_repeats(recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings with a line of code, or a layer, that none before them has."""
    seen: set[Any] = set()
    found = []
    for recording in recordings:
        here = {(step.line, step.name or str(step.target)) for step in recording.steps}
        if not here <= seen:
            found.append(recording)
            seen |= here
    return found


def steps_in(nest: Any) -> list[Step]:
    """All steps in nested arguments, in order."""
    return leaves_in(nest, Step)


def with_results(nest: Any, results: dict[Step, Any]) -> Any:
    """Nested arguments with what every step has made in its place."""
    return tree_map(nest, lambda leaf: results[leaf] if type(leaf) is Step else leaf)


_HOMES = (operator, torch.special, torch, functional)
NAMES: dict[Any, str] = {
    found: name
    for home in _HOMES
    for name, found in vars(home).items()
    if not name.startswith("__")
    and callable(found)
    and not isinstance(found, type)
    and found.__hash__ is not None
} | {getattr: "getattr"}
_AUGMENTED = ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
_SPELLINGS = {f"i{name}": name for name in _AUGMENTED} | {f"r{name}": name for name in _AUGMENTED}


def operation_name(func: Callable[..., Any]) -> str | None:
    """The name of a function in torch, the same for functions, methods and operators.

    None for what is not torch's.
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
    home = getattr(func, "__objclass__", None) or getattr(func, "__module__", None)
    known = isinstance(home, type) and issubclass(home, torch._C.TensorBase)
    known = known or str(home).startswith("torch")
    return getattr(func, "__name__", None) if known else None


def tensors_in(nests: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested arguments."""
    return leaves_in(tuple(nests), Tensor)
