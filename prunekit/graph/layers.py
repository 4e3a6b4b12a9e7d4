"""Find layers by name, and their channels by what the table of operations says of their class."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from prunekit.errors import SurgeryError
from prunekit.graph.table import layer_operation

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
WEIGHTED_LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def layer_named(
    model: nn.Module, name: str, remedy: str = "trace the graph on this network"
) -> nn.Module:
    """Return the module of that name, or a layer around the parameter of that name.

    Raises SurgeryError, with the remedy, if `model` has neither.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        owner, _, leaf = name.rpartition(".")
        with suppress(AttributeError):
            return layer_around(getattr(model.get_submodule(owner), leaf))
        raise SurgeryError(f"{type(model).__name__} has no layer {name!r}; {remedy}") from error


def layer_around(weight: nn.Parameter) -> nn.Module:
    """Return a layer with this parameter as its weight, for weights that functions are given."""
    outs, ins, *kernel = weight.shape
    if kernel:
        convolution: Any = CONVOLUTIONS[len(kernel) - 1]
        layer: nn.Module = convolution(ins, outs, kernel, bias=False, device="meta")
    else:
        layer = nn.Linear(ins, outs, bias=False, device="meta")
    layer.weight = weight
    return layer


def channel_dim(module: nn.Module, rank: int) -> int:
    """Return the dimension of the input channels in a layer's input of this rank."""
    entry = layer_operation(module)
    return 1 if entry is None else entry.channel_dim(module, rank)


def widths(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of input and output channels that a layer has parameters for.

    Raises AttributeError for modules without channels.
    """
    entry = layer_operation(module)
    if entry is None or not entry.width_attributes:
        raise AttributeError(f"{type(module).__name__} holds no channels that are known")
    ins, outs = entry.width_attributes[0], entry.width_attributes[-1]
    return _count(getattr(module, ins)), _count(getattr(module, outs))


def _count(attribute: int | Sequence[int] | Tensor) -> int:
    """Return a number, the last of several normalised sizes, or the number of indices."""
    if isinstance(attribute, Tensor):
        return len(attribute)
    return attribute if isinstance(attribute, int) else attribute[-1]


def is_weighted(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution or linear layer, whose outputs are new channels."""
    entry = None if module is None else layer_operation(module)
    return entry is not None and entry.weighted


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a layer normalises over the batch."""
    entry = layer_operation(module)
    return entry is not None and entry.batch_norm


def weight_norm(module: nn.Module) -> Any:
    """Return the weight normalisation of a layer, or None.

    That is a parametrisation, or the layer itself if it has the older hook.
    """
    if parametrize.is_parametrized(module, "weight"):
        chain = module.get_submodule("parametrizations").get_submodule("weight")
        first, *others = chain.children()
        return first if not others and isinstance(first, _WeightNorm) and first.dim == 0 else None
    if {"weight_g", "weight_v"} <= module._parameters.keys():
        return module
    return None


def user_tensors(network: nn.Module) -> set[str]:
    """Return the paths of parameters and buffers of modules that are no layers with channels."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in network.named_modules()
        if not has_channel_parameters(module)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def has_channel_parameters(module: nn.Module) -> bool:
    """Return whether a layer of this class has numbers for every channel."""
    entry = layer_operation(module)
    if entry is None or entry.narrow is None:
        return False
    return entry.weighted or entry.emits_bias or entry.same_shape


def with_shared_parameters(network: nn.Module) -> set[str]:
    """Return the names of the modules of which another module has a parameter, too."""
    owners: dict[Tensor, set[str]] = {}
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(name)
    return set().union(*(names for names in owners.values() if len(names) > 1))
