"""Cutting channels out of one layer, in place; a layer of your own joins by registering here."""

from __future__ import annotations

from functools import singledispatch

from torch import nn

from prunekit.errors import SurgeryError
from prunekit.graph.slicing import narrow_tensor
from prunekit.graph.table import Indices, of_layer

__all__ = ["narrow", "narrow_tensor"]


@singledispatch
def narrow(module: nn.Module, keep_in: Indices = None, keep_out: Indices = None) -> None:
    """Keep these input and output channels of a layer, given by index (None: all).

    The layer is changed in place, as the table of operations says, and gets new parameters of the
    old type, on the old device, in memory in the old order, as frozen as before. Register a
    function for a class of your own with `@narrow.register`.
    """
    entry = of_layer(module)
    if entry is None or entry.narrow is None:
        raise SurgeryError(
            f"{type(module).__name__} cannot be narrowed; register a function for it with "
            "prunekit.surgery.narrow.register"
        )
    entry.narrow(module, keep_in, keep_out)
