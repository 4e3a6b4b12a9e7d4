"""Keep some entries of parameters and buffers, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.table import Indices


def narrow_tensor(module: nn.Module, name: str, dim: int, keep: Indices) -> None:
    """Keep these entries (None: all) of a parameter or buffer along a dimension."""
    old = getattr(module, name)
    if old is None or keep is None:
        return
    kept = indices(keep, old.shape[dim]).to(old.device)
    new = like_strides(old.detach().index_select(dim, kept), old)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def indices(keep: Indices, width: int) -> Tensor:
    """Return the kept indices, all of `width` for None; raises SurgeryError for invalid ones."""
    if keep is None:
        return torch.arange(width)
    kept = torch.as_tensor(keep, dtype=torch.long).cpu()
    if len(kept) == 0:
        raise SurgeryError(f"none of {width} channels would be left; keep at least one")
    if int(kept.min()) < 0 or int(kept.max()) >= width:
        raise SurgeryError(f"channel {int(kept.max())} does not exist, there are {width}")
    return kept


def kept_indices(units: Tensor, drop: Tensor) -> tuple[int, ...] | None:
    """Return the positions in `units` that `drop`, a mask over ids, keeps; None for all."""
    removed = drop[units]
    return tuple((~removed).nonzero().flatten().tolist()) if bool(removed.any()) else None


def renumber(buffer: Tensor, kept: Sequence[int]) -> None:
    """Turn indices of all channels into indices of the kept channels, in place."""
    ordered = torch.tensor(kept, device=buffer.device, dtype=buffer.dtype)
    buffer.copy_(torch.searchsorted(ordered, buffer))


def put_weight_back(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put the weight of a layer that was made around a parameter into the network."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        setattr(module, leaf, layer.weight)


def common_indices(keep_in: Indices, keep_out: Indices) -> Indices:
    """Return what a layer keeps that has the same channels on both sides."""
    return keep_in if keep_out is None else keep_out


def select_entries(weight: Tensor, dim: int, kept: Tensor) -> Tensor:
    """Return these entries of a weight along a dimension."""
    if len(kept) == weight.shape[dim]:
        return weight
    return weight.index_select(dim, kept.to(weight.device))


def replace_parameter(module: nn.Module, name: str, values: Tensor) -> None:
    """Replace a parameter, with its `requires_grad` and memory format."""
    old = getattr(module, name)
    new = nn.Parameter(like_strides(values, old), requires_grad=old.requires_grad)
    setattr(module, name, new)


def like_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor with its dimensions in the same order in memory as those of `like`.

    If two dimensions have the same stride, the one with more entries is further out, since the
    other has one entry.
    """
    if tensor.ndim != like.ndim or tensor.ndim < 3:
        return tensor
    inside_out = sorted(range(like.ndim), key=lambda dim: (like.stride(dim), like.shape[dim], -dim))
    strides, step = [0] * like.ndim, 1
    for dim in inside_out:
        strides[dim], step = step, step * tensor.shape[dim]
    if tuple(strides) == tensor.stride():
        return tensor
    empty = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return empty.copy_(tensor)
