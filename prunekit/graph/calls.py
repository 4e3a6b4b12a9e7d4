"""One step of the traced network: which operation, on which values, asked for where."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from prunekit.graph.symbolic import where
from prunekit.graph.values import Value, each, values_in

_INPLACE = {f"i{name}": name for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
NAMES: dict[Any, str] = {
    found: name
    for home in (operator, torch.special, torch, functional)
    for name, found in vars(home).items()
    if not name.startswith("__")
    and callable(found)
    and not isinstance(found, type)
    and found.__hash__ is not None
} | {getattr: "getattr"}
_FOREIGN = {"torchvision.ops.stochastic_depth.stochastic_depth": "stochastic_depth"}


@dataclass(frozen=True, eq=False)
class Call:
    """An operation with its arguments, in which values stand for tensors."""

    node: fx.Node
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: nn.Module | None = None
    weighs: str | None = None  # the layer whose weights a function is given

    @property
    def layer(self) -> str:
        """The name of the layer that is called, or whose weights are used."""
        return self.weighs or str(self.node.target)

    @property
    def name(self) -> str | None:
        """The name in torch, the same for functions, methods and operators; None: unknown."""
        if self.module is not None and self.weighs is None:
            return None
        target = self.node.target
        name = target if isinstance(target, str) else NAMES.get(target) or _foreign(target)
        if name is None:
            return None
        return _INPLACE.get(name, name if name.startswith("_") else name.rstrip("_"))

    @property
    def title(self) -> str:
        """What is called and where, for messages."""
        if self.module is not None and self.weighs is None:
            return f"{self.node.target} ({type(self.module).__name__})"
        target = self.node.target
        shown = self.name or getattr(target, "__name__", str(target))
        return f"{shown} at {where(self.node)}"

    @cached_property
    def values(self) -> list[Value]:
        """The values among the arguments, in order."""
        return values_in(self.args, self.kwargs)

    @property
    def constants(self) -> Any:
        """The arguments with every value blanked out."""
        return each((self.args, self.kwargs), lambda value: None, Value)

    def on(self, pick: Callable[[Value], Tensor], op: Callable[..., Any] | None = None) -> Any:
        """Execute the operation with `pick(value)` in place of every value."""
        args, kwargs = each((self.args, self.kwargs), pick, Value)
        return (op or self.op)(*args, **kwargs)

    def on_meta(self) -> Any:
        """Execute the operation on shapes."""
        return self.on(lambda value: value.meta)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or name, or the setting of that name of the called layer."""
        if self.module is not None:
            found = [getattr(self.module, name) for name in names if hasattr(self.module, name)]
            return found[0] if found else default
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def written(self, position: int, *names: str) -> Any:
        """An argument as it stands in the code: a literal, or a node where it was computed."""
        if self.module is not None:
            return self.argument(position, *names)
        if len(self.node.args) > position:
            return self.node.args[position]
        return next((self.node.kwargs[name] for name in names if name in self.node.kwargs), None)


def _foreign(target: Callable[..., Any]) -> str | None:
    path = f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}"
    return _FOREIGN.get(path)
