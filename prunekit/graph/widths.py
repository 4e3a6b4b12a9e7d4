"""Hears of channel numbers that a forward reads off the attributes of layers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from prunekit.graph.lines import in_torch
from prunekit.graph.table import entries


@contextmanager
def widths_heard(tell: Callable[[nn.Module], None]) -> Iterator[None]:
    """Inside it, `tell` gets every layer whose channel number is read by code that is not torch's.

    Such a number is a plain integer, and what is computed from it cannot be followed.
    """
    places = [(kind, name) for entry in entries() for kind in entry.layers for name in entry.counts]
    before = [vars(kind).get(name) for kind, name in places]
    for kind, name in places:
        setattr(kind, name, _Heard(name, tell))
    try:
        yield
    finally:
        for (kind, name), one in zip(places, before, strict=True):
            delattr(kind, name) if one is None else setattr(kind, name, one)


class _Heard:
    """An attribute that tells when it is read; its value stays where it was."""

    def __init__(self, name: str, tell: Callable[[nn.Module], None]) -> None:
        self.name, self.tell = name, tell

    def __get__(self, layer: nn.Module | None, kind: type | None = None) -> Any:
        if layer is None:
            raise AttributeError(self.name)
        try:
            value = vars(layer)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None
        if not in_torch(sys._getframe(1).f_code.co_filename):
            self.tell(layer)
        return value

    def __set__(self, layer: nn.Module, value: Any) -> None:
        vars(layer)[self.name] = value

    def __delete__(self, layer: nn.Module) -> None:
        vars(layer).pop(self.name)
