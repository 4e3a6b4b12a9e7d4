"""Shapes of results that are known without running anything, as the table of operations says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.table import layer_operation, named_operation

_META = torch.device("meta")


def quick_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of a layer on the meta device whose shape is known from its one input, or None."""
    entry = layer_operation(module)
    if entry is None or kwargs or len(args) != 1:
        return None
    (first,) = args
    if module._modules or not first.is_floating_point():
        return None
    if entry.same_shape:
        return first if getattr(module, "inplace", False) else _empty(first, first.shape)
    shape = None if entry.layer_shape is None else entry.layer_shape(module, first)
    return None if shape is None else _empty(first, shape)


def quick_call(
    operation: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool
) -> Tensor | None:
    """The same for a function."""
    entry, first = named_operation(operation), args[0] if args else None
    if entry is not None and entry.concatenates and isinstance(first, tuple | list) and first:
        first = first[0]
    if entry is None or not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if "out" in kwargs or "dtype" in kwargs or "memory_format" in kwargs:
        return None
    if entry.same_shape:
        return first if inplace else _empty(first, first.shape)
    if entry.broadcasts and len(args) == 2 and not kwargs:
        return _broadcast(first, args[1], inplace)
    if entry.result_shape is not None and not inplace:
        with suppress(TypeError):  # arguments under other names are left to torch
            shape = entry.result_shape(*args, **kwargs)
            return None if shape is None else _empty(first, shape)
    return None


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _broadcast(first: Tensor, other: Any, inplace: bool) -> Tensor | None:
    if isinstance(other, Tensor):
        if other.dtype != first.dtype:
            return None
        same = other.shape == first.shape
        shape = first.shape if same else torch.broadcast_shapes(first.shape, other.shape)
    elif isinstance(other, int | float) and not isinstance(other, bool):
        shape = first.shape
    else:
        return None
    if inplace:
        return first if shape == first.shape else None
    return _empty(first, shape)
