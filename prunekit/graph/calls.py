"""One step of a recorded run, played again on values: which operation, on what, asked for where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from prunekit.graph.recording.nests import tree_map
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import Operation
from prunekit.graph.values import LabeledTensor, map_only, values_in


@dataclass(frozen=True, eq=False)
class Call:
    """An operation with its arguments, in which values stand for tensors, and its table entry.

    `recorded` says that the arguments have the shapes of the recorded run, whose result is known.
    """

    step: Step
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: Operation | None = None
    module: nn.Module | None = None
    owner: str | None = None  # the layer whose weights a function is given
    recorded: bool = False

    @property
    def layer(self) -> str:
        """The name of the layer that is called, or whose weights are used."""
        return self.owner or str(self.step.target)

    @property
    def name(self) -> str | None:
        """The name in torch, the same for functions, methods and operators; None: unknown."""
        return self.step.name

    @property
    def title(self) -> str:
        """What is called and where, for messages."""
        if self.step.kind is Kind.LAYER:
            return f"{self.step.target} ({type(self.module).__name__})"
        return str(self.step)

    @cached_property
    def values(self) -> list[LabeledTensor]:
        """The values among the arguments, in order."""
        return values_in(self.args, self.kwargs)

    @property
    def constants(self) -> Any:
        """The arguments with every value blanked out."""
        return map_only((self.args, self.kwargs), lambda value: None, LabeledTensor)

    def execute(
        self, pick: Callable[[LabeledTensor], Tensor], op: Callable[..., Any] | None = None
    ) -> Any:
        """Execute the operation with `pick(value)` in place of every value."""
        args, kwargs = map_only((self.args, self.kwargs), pick, LabeledTensor)
        return (op or self.op)(*args, **kwargs)

    def meta_result(self) -> Any:
        """The result on shapes."""
        return self.step.result if self.recorded else self.execute_on_meta()

    def execute_on_meta(self) -> Any:
        """Execute the operation on shapes."""
        return self.execute(lambda value: value.meta)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or name, or the setting of that name of the called layer."""
        if self.module is not None:
            found = [getattr(self.module, name) for name in names if hasattr(self.module, name)]
            return found[0] if found else default
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def recorded_argument(self, position: int, *names: str) -> Any:
        """An argument as it came about: a literal, or a step where it was computed."""
        if self.module is not None:
            return self.argument(position, *names)
        if len(self.step.args) > position:
            return self.step.args[position]
        return next((self.step.kwargs[name] for name in names if name in self.step.kwargs), None)


def shapes_equal(a: Any, b: Any) -> bool:
    """Whether two nests of values have the same shapes, and the same numbers elsewhere."""
    plain = [tree_map(nest, lambda leaf: _outline(leaf)) for nest in (a, b)]
    return bool(plain[0] == plain[1])


def _outline(leaf: Any) -> Any:
    return tuple(leaf.meta.shape) if isinstance(leaf, LabeledTensor) else _comparable(leaf)


def _comparable(leaf: Any) -> Any:
    return id(leaf) if isinstance(leaf, Tensor) else leaf
