"""Which layer a call applies, as a matrix that can be read and written: modules and functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.graph.layers import CONVOLUTIONS, WEIGHTED_LAYERS, weight_norm
from prunekit.graph.linear_maps import LinearMap
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import named_arguments, named_operation

_GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
_OPTIONS = ("stride", "padding", "dilation", "groups")  # of a convolution, behind its bias


def map_of_calls(
    network: nn.Module, name: str, calls: Sequence[Step], needs_bias: bool
) -> LinearMap | str:
    """Return the layer of this name as a matrix, or why its weight cannot be rewritten.

    `calls` are all steps that apply it, as a module or by a function that is given its weight.
    With `needs_bias` it must have a bias, or be a module that can get one.
    """
    found = [_applied(network, step, needs_bias) for step in calls]
    reasons = [layer for layer in found if isinstance(layer, str)]
    layers = [layer for layer in found if not isinstance(layer, str)]
    if not reasons and len({_geometry(layer) for layer in layers}) > 1:
        reasons = ["its calls differ in stride, padding or dilation"]
    if not reasons and (other := _sharer(network, name, layers[0])):
        reasons = [f"it shares its weight or bias with {other}"]
    return reasons[0] if reasons else LinearMap(layers[0])


def _applied(network: nn.Module, step: Step, needs_bias: bool) -> nn.Module | str:
    """Return the layer that a step applies; for a function, one with the same parameters."""
    if step.kind is not Kind.LAYER:
        return _of_function(network, step, needs_bias)
    layer = network.get_submodule(step.target)
    if not isinstance(layer, WEIGHTED_LAYERS):
        return f"{type(layer).__name__} is no convolution or linear layer"
    return layer if _can_store(layer) else "its weight is computed"


def _of_function(network: nn.Module, step: Step, needs_bias: bool) -> nn.Module | str:
    entry, path = named_operation(step.name), weight_path(network, step)
    if entry is None or path is None:
        return "its weight is lent to another function"
    words = (*entry.argument_names, *_OPTIONS)
    arguments = dict(zip(words, step.args, strict=False)) | step.kwargs
    bias = named_arguments(entry, step.args, step.kwargs).get("bias")
    if bias is None and needs_bias:
        return "it is given to a function without a bias"
    if bias is not None and not _is_own(bias):
        return "its bias is computed, or used elsewhere too"
    weight = _parameter(network, path)
    options = {key: arguments[key] for key in _OPTIONS if key in arguments}
    layer: Any = _like_function(weight, options)
    layer.weight = weight
    layer.bias = None if bias is None else _parameter(network, str(bias.target))
    module: nn.Module = layer
    return module


def _is_own(bias: Any) -> bool:
    return isinstance(bias, Step) and bias.kind is Kind.TENSOR and len(bias.users) == 1


def _like_function(weight: Tensor, options: dict[str, Any]) -> Any:
    """Return a layer without numbers that does what a function does with this weight."""
    outs, ins, *kernel = weight.shape
    if not kernel:
        return nn.Linear(ins, outs, bias=False, device="meta")
    rank, groups = len(kernel), options.pop("groups", 1)
    sizes = {key: _one_per_dimension(value, rank) for key, value in options.items()}
    convolution: Any = CONVOLUTIONS[rank - 1]
    return convolution(
        ins * groups, outs, tuple(kernel), groups=groups, bias=False, device="meta", **sizes
    )


def _one_per_dimension(value: Any, rank: int) -> Any:
    if isinstance(value, str):
        return value
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    return numbers * rank if len(numbers) == 1 else numbers


def _parameter(network: nn.Module, path: str) -> Any:
    owner, _, leaf = path.rpartition(".")
    return getattr(network.get_submodule(owner), leaf)


def _geometry(layer: nn.Module) -> tuple[Any, ...]:
    return tuple(getattr(layer, name, None) for name in _GEOMETRY)


def _sharer(network: nn.Module, name: str, layer: Any) -> str | None:
    """Return the name of another module that holds the same weight or bias, if there is one."""
    shared = {id(p) for p in layer._parameters.values() if p is not None}
    owners = [
        path
        for path, module in network.named_modules()
        if any(id(p) in shared for p in module._parameters.values())
    ]
    own = (name, name.rpartition(".")[0])
    return next((path for path in owners if path not in own), None) if len(owners) > 1 else None


@torch.no_grad()
def _can_store(layer: Any) -> bool:
    """Return whether a weight that is written into a layer is the one that it applies."""
    if "weight" in layer._parameters or weight_norm(layer) is not None:
        return True
    if not parametrize.is_parametrized(layer, "weight"):
        return False
    originals = layer.parametrizations.weight
    before = {name: p.clone() for name, p in originals.named_parameters()}
    wanted = 1.5 * layer.weight + 0.1 * layer.weight.abs().mean()
    try:
        layer.weight = wanted
        return torch.allclose(layer.weight, wanted, rtol=1e-5, atol=1e-7)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    finally:
        for name, parameter in originals.named_parameters():
            parameter.copy_(before[name])
