"""Who reads what layers put out, read off the recorded runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from prunekit.graph.layers import is_batch_norm, is_weighted
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.table import named_arguments, named_operation

Calls = Mapping[str, Sequence[Step]]


def followers(model: nn.Module, recordings: Sequence[Recording]) -> dict[str, str]:
    """Layer -> the batch norm with statistics that alone reads it, and reads nothing else.

    A layer that is a parameter of the user's own goes by the name of that.
    """
    found: dict[str, str] = {}
    lost: set[str] = set()
    for recording in recordings:
        layers, norms = _calls(model, recording, _layer), _calls(model, recording, _norm)
        readers = {step: name for name, steps in norms.items() for step in steps}
        for name, steps in layers.items():
            users = [user for step in steps for user in step.users if not user.is_query]
            norm = readers.get(users[0]) if users else None
            alone = len(users) == len(steps) and norm is not None
            if alone and {*users} == {*norms[norm]} and found.get(name, norm) == norm:
                found[name] = norm
            else:
                lost.add(name)
    return {name: norm for name, norm in found.items() if name not in lost}


def lent_biases(model: nn.Module, recordings: Sequence[Recording]) -> dict[str, str]:
    """Layers whose weights go to a function -> the bias given with them, used for nothing else."""
    found: dict[str, str] = {}
    for recording in recordings:
        for name, steps in _calls(model, recording, _lent).items():
            biases = {_bias(step) for step in steps}
            bias = biases.pop() if len(biases) == 1 else None
            if bias is not None and {*bias.users} <= {*steps}:
                found[name] = str(bias.target)
    return found


def _calls(
    model: nn.Module, recording: Recording, kind: Callable[[nn.Module, Step], str | None]
) -> Calls:
    found: dict[str, list[Step]] = {}
    for step in recording.steps:
        name = kind(model, step)
        if name is not None:
            found.setdefault(name, []).append(step)
    return found


def _layer(model: nn.Module, step: Step) -> str | None:
    if step.kind is Kind.LAYER:
        return str(step.target) if is_weighted(model.get_submodule(step.target)) else None
    return _lent(model, step)


def _lent(model: nn.Module, step: Step) -> str | None:
    path = weight_path(model, step)
    if path is None:
        return None
    owner = path.rpartition(".")[0]
    return owner if is_weighted(model.get_submodule(owner)) else path


def _norm(model: nn.Module, step: Step) -> str | None:
    owner = str(step.target) if step.kind is Kind.LAYER else norm_owner(model, step)
    norm = None if owner is None else model.get_submodule(owner)
    known = norm is not None and is_batch_norm(norm) and norm.running_mean is not None
    inside = step.kind is Kind.LAYER or (bool(step.calls) and step.calls[-1][1] == owner)
    return owner if known and inside else None


def _bias(step: Step) -> Step | None:
    entry = named_operation(step.name)
    bias = named_arguments(entry, step.args, step.kwargs).get("bias") if entry is not None else None
    return bias if isinstance(bias, Step) and bias.kind is Kind.TENSOR else None
