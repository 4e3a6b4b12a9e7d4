"""Shapes of results that are known without running anything, as the table of operations says."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.table import of_layer, of_name


def quick_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of a layer on the meta device that keeps the shape of its one input, or None."""
    entry = of_layer(module)
    if entry is None or not entry.alike or kwargs or len(args) != 1:
        return None
    if [*module.children()] or not args[0].is_floating_point():
        return None
    return args[0] if getattr(module, "inplace", False) else args[0].new_empty(args[0].shape)


def quick_call(
    operation: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool
) -> Tensor | None:
    """The same for a function."""
    entry, first = of_name(operation), args[0] if args else None
    if entry is None or not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if "out" in kwargs or "dtype" in kwargs or "memory_format" in kwargs:
        return None
    if entry.alike:
        return first if inplace else first.new_empty(first.shape)
    if entry.broadcasts and len(args) == 2 and not kwargs:
        return _broadcast(first, args[1], inplace)
    return None


def _broadcast(first: Tensor, other: Any, inplace: bool) -> Tensor | None:
    if isinstance(other, Tensor):
        if other.dtype != first.dtype:
            return None
        shape = torch.broadcast_shapes(first.shape, other.shape)
    elif isinstance(other, int | float) and not isinstance(other, bool):
        shape = first.shape
    else:
        return None
    if inplace:
        return first if shape == first.shape else None
    return first.new_empty(shape)
