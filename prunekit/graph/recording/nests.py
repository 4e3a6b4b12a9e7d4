"""Walk nests of arguments and results: tuples, lists, dicts and slices of any depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

_NESTS = (tuple, list, dict, slice)  # and their subclasses, such as torch.Size
_leaves: set[type] = {int, float, bool, str, type(None), torch.Tensor, torch.dtype}


def _is_leaf(item: Any) -> bool:
    """Return whether nothing can be in an item; classes of leaves are remembered for speed."""
    kind = type(item)
    if kind in _leaves:
        return True
    if isinstance(item, _NESTS):
        return False
    _leaves.add(kind)
    return True


def tree_map(nest: Any, change: Callable[[Any], Any]) -> Any:
    """Return the nest with every leaf changed."""
    kind = type(nest)
    if kind in _leaves:
        return change(nest)
    if kind is tuple or kind is list:  # spelled out for speed, since most nests are these
        return kind(
            [change(item) if type(item) in _leaves else tree_map(item, change) for item in nest]
        )
    if kind is dict:
        return {key: tree_map(item, change) for key, item in nest.items()} if nest else {}
    return change(nest) if _is_leaf(nest) else _mapped(nest, change)


def _mapped(nest: Any, change: Callable[[Any], Any]) -> Any:
    """Do the same for slices, and for subclasses of tuples, lists and dicts."""
    if isinstance(nest, tuple):
        items = [tree_map(item, change) for item in nest]
        return tuple(items) if type(nest) is torch.Size else _like(nest, items)
    if isinstance(nest, list):
        return [tree_map(item, change) for item in nest]
    if isinstance(nest, dict):
        return {key: tree_map(item, change) for key, item in nest.items()}
    return slice(*(tree_map(item, change) for item in (nest.start, nest.stop, nest.step)))


def _like(nest: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """Return a named tuple of the same class; those of torch take a list."""
    return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)


def leaves_in(nest: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """Return all leaves of a kind, in order."""
    leaves: list[Any] = []
    _gather(nest, kind, leaves)
    return leaves


def _gather(nest: Any, kind: type | tuple[type, ...], leaves: list[Any]) -> None:
    nest_type, inner = type(nest), nest
    if nest_type is dict:
        inner = nest.values()
    elif nest_type is not tuple and nest_type is not list:  # tested first for speed
        if nest_type in _leaves or _is_leaf(nest):
            if isinstance(nest, kind):
                leaves.append(nest)
            return
        if isinstance(nest, dict):
            inner = nest.values()
        elif isinstance(nest, slice):
            inner = (nest.start, nest.stop, nest.step)
    for item in inner:
        if type(item) not in _leaves:
            _gather(item, kind, leaves)
        elif isinstance(item, kind):
            leaves.append(item)


def tensors_within(result: Any, depth: int = 6) -> list[torch.Tensor]:
    """Return the tensors of any result: nests, data classes, and objects that hold tensors."""
    if isinstance(result, torch.Tensor):
        return [result]
    if depth == 0 or isinstance(result, str | bytes | int | float | type | None):
        return []
    if isinstance(result, Mapping):
        inner = [*result.values()]
    elif isinstance(result, tuple | list | set | frozenset):
        inner = [*result]
    elif dataclasses.is_dataclass(result):
        inner = [getattr(result, field.name, None) for field in dataclasses.fields(result)]
    elif isinstance(result, torch.nn.Module):
        inner = []
    else:
        inner = [*getattr(result, "__dict__", {}).values()]
    return [tensor for field in inner for tensor in tensors_within(field, depth - 1)]
