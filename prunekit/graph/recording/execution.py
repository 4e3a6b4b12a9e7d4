"""Execute operations of torch on tensors that may be on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.recording.nests import leaves_in, tree_map
from prunekit.graph.recording.steps import operation_name
from prunekit.graph.recording.tracking import TrackedFloat, TrackedInt, plain
from prunekit.graph.shapes import quick_call, quick_layer
from prunekit.graph.table import function_operation

_PLACED = frozenset({"to", "cuda", "cpu", "type", "new_tensor"})
_DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")
_META = torch.device("meta")


class Execution:
    """Executes what a recorder gets; with `shapes_only`, created tensors are meta tensors too."""

    def __init__(self, shapes_only: bool) -> None:
        self.shapes_only = shapes_only
        self._meta_copies: dict[int, tuple[Tensor, Tensor]] = {}

    def function(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """Return the result of a function; if one tensor is on the meta device, all are."""
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
        """Return the result of a layer, on the meta device if its parameters are there."""
        (args, kwargs), shapes = self._prepare((args, kwargs))
        if self.shapes_only and not shapes and _is_on_meta(module):
            (args, kwargs), shapes = tree_map((args, kwargs), self._as_meta), True
        if shapes:
            quick = quick_layer(module, args, kwargs)
            if quick is not None:
                return quick
        return forward(*args, **kwargs)

    def _prepare(self, nest: Any) -> tuple[Any, bool]:
        """Return plain arguments and whether they are on the meta device: all are if one is."""
        leaves = leaves_in(nest, (Tensor, TrackedInt, TrackedFloat))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(tensors) < len(leaves):
            nest = tree_map(nest, plain)
        shapes = [tensor.is_meta for tensor in tensors]
        if any(shapes) and not all(shapes):
            nest = tree_map(nest, self._as_meta)
        return nest, any(shapes)

    def _as_meta(self, leaf: Any) -> Any:
        """Return a meta tensor for a tensor with numbers."""
        if not isinstance(leaf, Tensor) or leaf.is_meta:
            return leaf
        pair = self._meta_copies.get(id(leaf))
        if pair is None:
            pair = self._meta_copies[id(leaf)] = (leaf, leaf.detach().to("meta"))
        return pair[1]


def is_in_place(name: str, kwargs: Any) -> bool:
    """Return whether a function changes its first argument."""
    if name.endswith("_") and not name.endswith("__"):
        return True
    return name.startswith("__i") or bool(kwargs.get("inplace"))


def shape_of(leaf: Any) -> Any:
    """Return a new meta tensor for a tensor, and a plain value for any other leaf."""
    if not isinstance(leaf, Tensor):
        return plain(leaf)
    return leaf.detach() if leaf.is_meta else torch.empty_like(leaf, device="meta").detach()


def unaliased(result: Any, args: Any) -> Any:
    """Return a view of a result that is one of the arguments, so that it is a tensor of its own."""
    return result.view_as(result) if any(result is arg for arg in args) else result


def is_viewed(tensor: Tensor) -> bool:
    """Return whether a write into a tensor may change others: it is a view, or has views."""
    return tensor._base is not None or getattr(tensor, "_viewed", False)


def _is_on_meta(module: nn.Module) -> bool:
    """Return whether a module has parameters or buffers on the meta device."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def _creates(func: Callable[..., Any]) -> bool:
    entry = function_operation(func)
    return entry is not None and entry.creates


def _call_placement(func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
    """Move a meta tensor to a device, which leaves it on the meta device."""
    if name in ("cuda", "cpu"):
        return args[0]
    if "device" in kwargs:
        kwargs = {**kwargs, "device": _META}
    return func(args[0], *tree_map(args[1:], _off_device), **kwargs)


def _off_device(leaf: Any) -> Any:
    return _META if isinstance(leaf, torch.device) or leaf in _DEVICES else leaf
