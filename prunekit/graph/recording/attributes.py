"""Hears of attributes of modules that a forward reads: its mode, and how many channels layers have.

Such values are plain, and what is computed from them cannot be followed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prunekit.graph.recording.lines import in_torch
from prunekit.graph.table import all_operations

Callback = Callable[[nn.Module], None]


@contextmanager
def attributes_observed(width: Callback, mode: Callback) -> Iterator[None]:
    """Inside it, code that is not torch's is told on: `width` and `mode` get the module it read."""
    places = [(nn.Module, "training", mode)]
    for entry in all_operations():
        places += [(kind, name, width) for kind in entry.layers for name in entry.width_attributes]
    before = [vars(kind).get(name) for kind, name, _ in places]
    for kind, name, tell in places:
        setattr(kind, name, _ObservedAttribute(name, tell))
    try:
        yield
    finally:
        for (kind, name, _), one in zip(places, before, strict=True):
            delattr(kind, name) if one is None else setattr(kind, name, one)


class _ObservedAttribute:
    """An attribute that tells when it is read; its value stays where it was."""

    def __init__(self, name: str, tell: Callback) -> None:
        self.name, self.tell = name, tell

    def __get__(self, module: nn.Module | None, kind: type | None = None) -> Any:
        if module is None:
            raise AttributeError(self.name)
        try:
            value = vars(module)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None
        if not in_torch(sys._getframe(1).f_code.co_filename):
            self.tell(module)
        return value

    def __set__(self, module: nn.Module, value: Any) -> None:
        vars(module)[self.name] = value

    def __delete__(self, module: nn.Module) -> None:
        vars(module).pop(self.name)
