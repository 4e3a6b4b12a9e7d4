"""Carry an optimizer and its state, such as momentum, over from a network to its narrow copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.errors import SurgeryError
from prunekit.graph.slicing import like_strides
from prunekit.graph.wrappers import network_in
from prunekit.modes import duplicate
from prunekit.surgery.edits import Edit


@dataclass(frozen=True, eq=False)
class ParameterOrigin:
    """The dense parameter `name` whose flat entries `indices` make up a narrow parameter."""

    name: str
    indices: Tensor


def narrow_optimizer(
    optimizer: Optimizer, dense: nn.Module, narrow: nn.Module, edits: Sequence[Edit]
) -> Optimizer:
    """Move an optimizer from `dense` to `narrow`, which `edits` made of it, and return it.

    The optimizer is changed in place. Groups keep their order, options and members, so that
    learning-rate schedules continue; a new parameter joins the group of its layer's weight. State
    of the shape of its parameter is narrowed with it, and scalars such as step counts are kept.
    Parameters that a cut recomputes, such as those of a normalised weight, start without state.
    Raises SurgeryError, and changes nothing, for parameters of another network and state of any
    other shape.
    """
    dense, narrow = network_in(dense), network_in(narrow)
    names = {id(parameter): name for name, parameter in dense.named_parameters()}
    parameters, origins = dict(narrow.named_parameters()), parameter_origins(dense, edits)
    groups = [[_name(p, names) for p in group["params"]] for group in optimizer.param_groups]
    old = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
    states: dict[Tensor, dict[str, Any]] = {
        parameters[name]: _narrow_state(name, optimizer.state[old[origin.name]], old, origin)
        for name, origin in origins.items()
        if origin.name in old and old[origin.name] in optimizer.state
    }
    successors = _successors(parameters, origins, set(names.values()))
    for group, members in zip(optimizer.param_groups, groups, strict=True):
        group["params"] = [parameters[new] for name in members for new in successors.get(name, ())]
    optimizer.state.clear()
    optimizer.state.update(states)
    return optimizer


def parameter_origins(dense: nn.Module, edits: Sequence[Edit]) -> dict[str, ParameterOrigin]:
    """Return, for every parameter after the edits, the entries of the dense network it holds.

    The edits are applied to a copy whose parameters hold running numbers in place of weights, so
    that no class of layers has to be handled here. New parameters, and those that are no selection
    of old entries, are left out.
    """
    twin = duplicate(dense)
    starts, start = {}, 1  # new parameters are zeros, so no entry has the number 0
    for name, parameter in twin.named_parameters():
        starts[name] = start
        numbers = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
        parameter.data = numbers.view(parameter.shape)
        start += parameter.numel()
    bounds = torch.tensor([*starts.values(), start], dtype=torch.float64)
    for edit in edits:
        edit.apply(twin)
    origins = {}
    for name, parameter in twin.named_parameters():
        origin = _origin(parameter.detach().double().cpu(), [*starts], bounds)
        if origin is not None:
            origins[name] = origin
    return origins


def _origin(numbers: Tensor, names: Sequence[str], bounds: Tensor) -> ParameterOrigin | None:
    """Return the parameter whose range contains all numbers; None if there is none."""
    if not numbers.numel() or not bool((numbers == numbers.round()).all()):
        return None
    index = int(torch.searchsorted(bounds, numbers.min(), right=True)) - 1
    if not 0 <= index < len(names) or float(numbers.max()) >= float(bounds[index + 1]):
        return None
    return ParameterOrigin(names[index], (numbers - bounds[index]).long())


def _successors(
    parameters: Mapping[str, nn.Parameter],
    origins: Mapping[str, ParameterOrigin],
    dense: set[str],
) -> dict[str, list[str]]:
    """Return, for every dense parameter, those that take its place in the optimizer's groups.

    A new parameter follows another parameter of its layer.
    """
    predecessor = {name: origin.name for name, origin in origins.items()}
    predecessor |= {n: n for n in parameters if n in dense and n not in predecessor}
    for name in [name for name in parameters if name not in predecessor]:
        layer = name.rpartition(".")[0]
        siblings = [other for other in predecessor if other.startswith(f"{layer}.")]
        if siblings:
            predecessor[name] = predecessor[siblings[0]]
    successors: dict[str, list[str]] = {}
    for name, old in predecessor.items():
        successors.setdefault(old, []).append(name)
    return successors


def _name(parameter: nn.Parameter, names: Mapping[int, str]) -> str:
    if id(parameter) not in names:
        raise SurgeryError(
            f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not one of "
            "the dense network; give the optimizer that trains the network which was pruned"
        )
    return names[id(parameter)]


def _narrow_state(
    name: str, state: Mapping[str, Any], old: Mapping[str, Tensor], origin: ParameterOrigin
) -> dict[str, Any]:
    shape = old[origin.name].shape
    narrow: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or (value.shape != shape and value.numel() == 1):
            narrow[key] = value
        elif value.shape == shape:
            kept = value.detach().flatten()[origin.indices.to(value.device)]
            narrow[key] = like_strides(kept, value)
        else:
            raise SurgeryError(
                f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for {name}, which has "
                f"shape {tuple(shape)}; such state cannot be narrowed, make the optimizer anew"
            )
    return narrow
