"""Runs operations of torch where tensors may be shapes only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.recording.nests import leaves_in, tree_map
from prunekit.graph.recording.shapes import quick_call, quick_layer
from prunekit.graph.recording.sizes import TrackedFloat, TrackedInt, plain
from prunekit.graph.recording.steps import operation_name
from prunekit.graph.table import function_operation

_PLACED = frozenset({"to", "cuda", "cpu", "type", "new_tensor"})
_DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")
_META = torch.device("meta")


class Execution:
    """Runs what a recorder is told of; `shapes_only`: what is made anew is a shape too."""

    def __init__(self, shapes_only: bool) -> None:
        self.shapes_only = shapes_only
        self._shadows: dict[int, tuple[Tensor, Tensor]] = {}

    def function(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """The result of a function; where one tensor is a shape, all are."""
        (args, kwargs), shapes = self._prepare((args, kwargs))
        if shapes:
            if name in _PLACED:
                return _call_placement(func, name, args, kwargs)
            if "device" in kwargs:
                kwargs = {**kwargs, "device": _META}
            quick = quick_call(operation_name(func), args, kwargs, is_in_place(name, kwargs))
            if quick is not None:
                return quick
        elif self.shapes_only and _creates(func):
            kwargs = {**kwargs, "device": _META}
        return func(*args, **kwargs)

    def layer(self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of a layer."""
        (args, kwargs), shapes = self._prepare((args, kwargs))
        if shapes:
            quick = quick_layer(module, args, kwargs)
            if quick is not None:
                return quick
        return forward(*args, **kwargs)

    def _prepare(self, nest: Any) -> tuple[Any, bool]:
        """Arguments with plain numbers, as shapes where one is; and whether they are."""
        leaves = leaves_in(nest, (Tensor, TrackedInt, TrackedFloat))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(tensors) < len(leaves):
            nest = tree_map(nest, plain)
        shapes = [tensor.is_meta for tensor in tensors]
        if any(shapes) and not all(shapes):
            nest = tree_map(nest, self._as_meta)
        return nest, any(shapes)

    def _as_meta(self, leaf: Any) -> Any:
        """A tensor of numbers as a shape, for what meets shapes."""
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        known = self._shadows.get(id(leaf))
        if known is None:
            known = self._shadows[id(leaf)] = (leaf, leaf.detach().to("meta"))
        return known[1]


def is_in_place(name: str, kwargs: Any) -> bool:
    """Whether a function changes its first argument."""
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name.startswith("__i") or bool(kwargs.get("inplace"))


def _creates(func: Callable[..., Any]) -> bool:
    entry = function_operation(func)
    return entry is not None and entry.creates


def _call_placement(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
    """Move a shape: it stays one."""
    if name in ("cuda", "cpu"):
        return args[0]
    if "device" in kwargs:
        kwargs = {**kwargs, "device": _META}
    return func(args[0], *tree_map(args[1:], _off_device), **kwargs)


def _off_device(leaf: Any) -> Any:
    return _META if isinstance(leaf, torch.device) or leaf in _DEVICES else leaf
