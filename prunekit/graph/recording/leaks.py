"""What a run put into caches, lists and variables outside the network is taken out again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from prunekit.graph.recording.nests import leaves_in

_DEPTH = 3  # tuples around a tensor


def forget(tensors: Sequence[Tensor], network: nn.Module) -> None:
    """Take these tensors out of whatever holds them, but for the modules of the copy itself.

    A shape that stays in a cache would meet the numbers of the next run.
    """
    own = {id(leaf) for one in network.modules() for leaf in leaves_in(vars(one), Tensor)}
    leaked = [tensor for tensor in tensors if id(tensor) not in own]
    lost = {id(tensor) for tensor in leaked}
    if lost:
        _take_out(leaked, lost, {id(leaked), id(tensors), id(lost)}, _DEPTH)


def _take_out(held: list[Any], lost: set[int], ours: set[int], depth: int) -> None:
    tuples = []
    for holder in gc.get_referrers(*held):
        if id(holder) in ours or holder is held:
            continue
        if isinstance(holder, tuple):
            tuples.append(holder)
        elif isinstance(holder, dict):
            _clean(holder, lost)
        elif isinstance(holder, list):
            holder[:] = [item for item in holder if id(item) not in lost]
        elif isinstance(holder, set):
            holder.difference_update([item for item in holder if id(item) in lost])
        elif hasattr(holder, "cache_clear"):
            holder.cache_clear()
        elif not isinstance(holder, Tensor) and hasattr(holder, "__dict__"):
            _clean_object(holder, lost)
    if tuples and depth:
        _take_out(tuples, {id(one) for one in tuples}, {*ours, id(held)}, depth - 1)


def _clean(holder: dict[Any, Any], lost: set[int]) -> None:
    keys = [key for key, value in holder.items() if id(value) in lost]
    owners = gc.get_referrers(holder) if keys else []
    owner = next((one for one in owners if _owns(one, holder)), None)
    for key in keys:
        if owner is None:
            del holder[key]
        else:
            setattr(owner, key, None)


def _owns(owner: Any, namespace: dict[Any, Any]) -> bool:
    """Whether a dict holds the variables of a module, a class or an object."""
    if isinstance(owner, type):
        return namespace.get("__module__") == owner.__module__ and "__doc__" in namespace
    return isinstance(owner, ModuleType) or getattr(owner, "__dict__", None) is namespace


def _clean_object(holder: Any, lost: set[int]) -> None:
    for name in [name for name, value in vars(holder).items() if id(value) in lost]:
        setattr(holder, name, None)
