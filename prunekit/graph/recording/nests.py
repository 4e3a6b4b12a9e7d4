"""Arguments and results are nests: tuples, lists, dicts and slices, however deep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

_NESTS = (tuple, list, dict, slice)  # and what is derived from them, such as torch.Size
_leaves: set[type] = {int, float, bool, str, type(None), torch.Tensor, torch.dtype}


def _is_leaf(item: Any) -> bool:
    """Whether nothing can be in it; classes that were seen are remembered, which is faster."""
    kind = type(item)
    if kind in _leaves:
        return True
    if isinstance(item, _NESTS):
        return False
    _leaves.add(kind)
    return True


def tree_map(nest: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest with every leaf changed."""
    kind = type(nest)
    if kind in _leaves:
        return change(nest)
    if kind is tuple or kind is list:  # spelled out, since it is what is mostly asked for
        return kind(
            [change(item) if type(item) in _leaves else tree_map(item, change) for item in nest]
        )
    if kind is dict:
        return {key: tree_map(item, change) for key, item in nest.items()} if nest else {}
    return change(nest) if _is_leaf(nest) else _mapped(nest, change)


def _mapped(nest: Any, change: Callable[[Any], Any]) -> Any:
    """The same for slices, and for what is derived from tuples, lists and dicts."""
    if isinstance(nest, tuple):
        items = [tree_map(item, change) for item in nest]
        return tuple(items) if type(nest) is torch.Size else _like(nest, items)
    if isinstance(nest, list):
        return [tree_map(item, change) for item in nest]
    if isinstance(nest, dict):
        return {key: tree_map(item, change) for key, item in nest.items()}
    return slice(*(tree_map(item, change) for item in (nest.start, nest.stop, nest.step)))


def _like(nest: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """A named tuple of the same kind; those of torch take a list."""
    return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)


def leaves_in(nest: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """All leaves of a kind, in order."""
    found: list[Any] = []
    _gather(nest, kind, found)
    return found


def _gather(nest: Any, kind: type | tuple[type, ...], found: list[Any]) -> None:
    if type(nest) in _leaves or _is_leaf(nest):
        if isinstance(nest, kind):
            found.append(nest)
        return
    if isinstance(nest, dict):
        inner: Any = nest.values()
    else:
        inner = (nest.start, nest.stop, nest.step) if isinstance(nest, slice) else nest
    for item in inner:
        if type(item) not in _leaves:
            _gather(item, kind, found)
        elif isinstance(item, kind):
            found.append(item)


def tensors_within(found: Any, depth: int = 6) -> list[torch.Tensor]:
    """The tensors of whatever a network returns: nests, data classes, objects that hold tensors."""
    if isinstance(found, torch.Tensor):
        return [found]
    if depth == 0 or isinstance(found, str | bytes | int | float | type | None):
        return []
    if isinstance(found, Mapping):
        inner = [*found.values()]
    elif isinstance(found, tuple | list | set | frozenset):
        inner = [*found]
    elif dataclasses.is_dataclass(found):
        inner = [getattr(found, one.name, None) for one in dataclasses.fields(found)]
    elif isinstance(found, torch.nn.Module):
        inner = []
    else:
        inner = [*getattr(found, "__dict__", {}).values()]
    return [tensor for one in inner for tensor in tensors_within(one, depth - 1)]
