"""An optimizer follows its network through a cut: momentum and moments of what stays, stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import SurgeryError
from prunekit.graph.strides import arranged
from prunekit.graph.wrappers import network_in
from prunekit.modes import duplicate
from prunekit.surgery.edits import Edit


@dataclass(frozen=True, eq=False)
class Source:
    """Which parameter of the dense network one is made of, and which of its flat entries."""

    name: str
    places: Tensor


def narrow_optimizer(
    optimizer: Optimizer, dense: nn.Module, narrow: nn.Module, edits: Sequence[Edit]
) -> Optimizer:
    """Move an optimizer of `dense` to `narrow`, which `edits` made of it; the same object returns.

    Groups keep order, options and members, so that learning-rate schedules go on; a parameter that
    is new joins the group of its layer's weight. State as large as its parameter is narrowed with
    it, scalars such as step counts are kept. Where a cut recomputes a parameter, as that of a
    normalised weight, its state starts anew. Raises SurgeryError, and changes nothing, for
    parameters that are not the network's and state of any other shape.
    """
    dense, narrow = network_in(dense), network_in(narrow)
    names = {id(parameter): name for name, parameter in dense.named_parameters()}
    mine, found = dict(narrow.named_parameters()), sources(dense, edits)
    groups = [[_name(p, names) for p in group["params"]] for group in optimizer.param_groups]
    old = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    states = {
        mine[name]: _narrowed(name, optimizer.state[old[source.name]], old[source.name], source)
        for name, source in found.items()
        if source.name in old and old[source.name] in optimizer.state
    }
    homes = _homes(mine, found, set(names.values()))
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [mine[new] for name in members for new in homes.get(name, ())]
    optimizer.state.clear()
    optimizer.state.update(states)
    return optimizer


def sources(dense: nn.Module, edits: Sequence[Edit]) -> dict[str, Source]:
    """For every parameter after the edits what it is made of.

    Found by editing a copy whose parameters hold their own places in place of weights, so that no
    layer has to be known here. New parameters, and those that are not a selection of old entries,
    are left out.
    """
    twin = duplicate(dense)
    starts, start = {}, 1  # new parameters are zeros, so no place is called 0
    for name, parameter in twin.named_parameters():
        starts[name] = start
        places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        parameter.data = places.view(parameter.shape)
        start += parameter.numel()
    bounds = torch.tensor([*starts.values(), start], dtype=torch.float64)
    for edit in edits:
        edit.apply(twin)
    found = {}
    for name, parameter in twin.named_parameters():
        source = _source(parameter.detach().double().cpu(), [*starts], bounds)
        if source is not None:
            found[name] = source
    return found


def _source(places: Tensor, names: Sequence[str], bounds: Tensor) -> Source | None:
    """The parameter in whose range all places lie; None for numbers that are no places."""
    if not places.numel() or not bool((places == places.round()).all()):
        return None
    index = int(torch.searchsorted(bounds, places.min(), right=True)) - 1
    if not 0 <= index < len(names) or float(places.max()) >= float(bounds[index + 1]):
        return None
    return Source(names[index], (places - bounds[index]).long())


def _homes(
    mine: Mapping[str, nn.Parameter], found: Mapping[str, Source], dense: set[str]
) -> dict[str, list[str]]:
    """Dense parameter -> those that stand in its place, and behind a weight what is new there."""
    home = {name: source.name for name, source in found.items()}
    home |= {name: name for name in mine if name in dense and name not in home}
    for name in [name for name in mine if name not in home]:
        layer = name.rpartition(".")[0]
        beside = [other for other in home if other.startswith(f"{layer}.")]
        if beside:
            home[name] = home[beside[0]]
    homes: dict[str, list[str]] = {}
    for name, old in home.items():
        homes.setdefault(old, []).append(name)
    return homes


def _name(parameter: nn.Parameter, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise SurgeryError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not one of "
            "the dense network; give the optimizer that trains the network which was pruned"
        )
    return names[id(parameter)]


def _narrowed(name: str, state: Mapping[str, Any], old: Tensor, source: Source) -> dict[str, Any]:
    found = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or (value.shape != old.shape and value.numel() == 1):
            found[key] = value
        elif value.shape == old.shape:
            kept = value.detach().flatten()[source.places.to(value.device)]
            found[key] = arranged(kept, value)
        else:
            raise SurgeryError(
                f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for {name}, which has "
                f"shape {tuple(old.shape)}; such state cannot be narrowed, make the optimizer anew"
            )
    return found
