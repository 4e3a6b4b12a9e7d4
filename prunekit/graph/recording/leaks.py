"""What a run put into caches, lists and variables outside the network is taken out again."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from prunekit.graph.recording.nests import leaves_in

_DEPTH = 3  # tuples around a tensor


def release_tensors(tensors: Sequence[Tensor], network: nn.Module) -> None:
    """Take these tensors out of whatever holds them, but for the modules of the copy itself.

    A shape that stays in a cache would meet the numbers of the next run.
    """
    owned = {id(leaf) for one in network.modules() for leaf in leaves_in(vars(one), Tensor)}
    leaked = [tensor for tensor in tensors if id(tensor) not in owned]
    ids = {id(tensor) for tensor in leaked}
    if ids:
        _remove_from_holders(leaked, ids, {id(leaked), id(tensors), id(ids)}, _DEPTH)


def _remove_from_holders(targets: list[Any], ids: set[int], excluded: set[int], depth: int) -> None:
    tuples = []
    for holder in gc.get_referrers(*targets):
        if id(holder) in excluded or holder is targets:
            continue
        if isinstance(holder, tuple):
            tuples.append(holder)
        elif isinstance(holder, dict):
            _remove_from_dict(holder, ids)
        elif isinstance(holder, list):
            holder[:] = [item for item in holder if id(item) not in ids]
        elif isinstance(holder, set):
            holder.difference_update([item for item in holder if id(item) in ids])
        elif hasattr(holder, "cache_clear"):
            holder.cache_clear()
        elif not isinstance(holder, Tensor) and hasattr(holder, "__dict__"):
            _remove_from_object(holder, ids)
    if tuples and depth:
        _remove_from_holders(
            tuples, {id(one) for one in tuples}, {*excluded, id(targets)}, depth - 1
        )


def _remove_from_dict(holder: dict[Any, Any], ids: set[int]) -> None:
    keys = [key for key, value in holder.items() if id(value) in ids]
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


def _remove_from_object(holder: Any, ids: set[int]) -> None:
    for name in [name for name, value in vars(holder).items() if id(value) in ids]:
        setattr(holder, name, None)
