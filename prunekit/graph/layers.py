"""Layers of a network: by name, by what the table of operations says of their class."""

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
    model: nn.Module, name: str, mend: str = "trace the graph on this network"
) -> nn.Module:
    """The module of that name, or a layer around the parameter of that name.

    SurgeryError when `model` is not the network it was found in.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        owner, _, leaf = name.rpartition(".")
        with suppress(AttributeError):
            return layer_around(getattr(model.get_submodule(owner), leaf))
        raise SurgeryError(f"{type(model).__name__} has no layer {name!r}; {mend}") from error


def layer_around(weight: nn.Parameter) -> nn.Module:
    """A layer that holds this very parameter as its weight, for functions that are given one."""
    outs, ins, *kernel = weight.shape
    if kernel:
        layer = CONVOLUTIONS[len(kernel) - 1](ins, outs, kernel, bias=False, device="meta")
    else:
        layer = nn.Linear(ins, outs, bias=False, device="meta")
    layer.weight = weight
    return layer


def channel_dim(module: nn.Module, rank: int) -> int:
    """The dimension of a layer's input of this rank that holds its input channels."""
    entry = layer_operation(module)
    return 1 if entry is None else entry.channel_dim(module, rank)


def widths(module: nn.Module) -> tuple[int, int]:
    """The input and output channels that a layer holds parameters for; AttributeError without."""
    entry = layer_operation(module)
    if entry is None or not entry.width_attributes:
        raise AttributeError(f"{type(module).__name__} holds no channels that are known")
    return _count(getattr(module, entry.width_attributes[0])), _count(
        getattr(module, entry.width_attributes[-1])
    )


def _count(found: int | Sequence[int] | Tensor) -> int:
    """A number of channels: itself, the last of normalised sizes, or how many indices there are."""
    if isinstance(found, Tensor):
        return len(found)
    return found if isinstance(found, int) else found[-1]


def is_weighted(module: nn.Module | None) -> bool:
    """Whether channels end at a layer and others begin: convolutions and linear maps."""
    entry = None if module is None else layer_operation(module)
    return entry is not None and entry.weighted


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a layer normalises over the batch."""
    entry = layer_operation(module)
    return entry is not None and entry.batch_norm


def weight_norm(module: nn.Module) -> Any:
    """The weight normalisation of a layer that has one, by parametrisation or by the older hook."""
    if parametrize.is_parametrized(module, "weight"):
        chain = module.parametrizations.weight
        plain = len(chain) == 1 and isinstance(chain[0], _WeightNorm) and chain[0].dim == 0
        return chain[0] if plain else None
    if {"weight_g", "weight_v"} <= module._parameters.keys():
        return module
    return None
