"""Arguments and results are nests: tuples, lists, dicts and slices, however deep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch


def mapped(nest: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest with every leaf changed."""
    if isinstance(nest, torch.Size):
        return tuple(mapped(item, change) for item in nest)
    if isinstance(nest, tuple):
        items = [mapped(item, change) for item in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else _like(type(nest), items)
    if isinstance(nest, list):
        return [mapped(item, change) for item in nest]
    if isinstance(nest, dict):
        return {key: mapped(item, change) for key, item in nest.items()}
    if isinstance(nest, slice):
        return slice(*(mapped(item, change) for item in (nest.start, nest.stop, nest.step)))
    return change(nest)


def _like(kind: type, items: list[Any]) -> tuple[Any, ...]:
    return tuple(items) if kind is tuple else kind(items)  # named tuples of torch take a list


def leaves_in(nest: Any, kind: type | tuple[type, ...]) -> list[Any]:
    """All leaves of a kind, in order."""
    found: list[Any] = []
    _gather(nest, kind, found)
    return found


def _gather(item: Any, kind: type | tuple[type, ...], found: list[Any]) -> None:
    if isinstance(item, kind):
        found.append(item)
    elif isinstance(item, tuple | list):
        for one in item:
            _gather(one, kind, found)
    elif isinstance(item, dict):
        for one in item.values():
            _gather(one, kind, found)
    elif isinstance(item, slice):
        _gather((item.start, item.stop, item.step), kind, found)


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
