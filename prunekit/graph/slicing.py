"""Keeping some entries of parameters and buffers, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.strides import like_strides
from prunekit.graph.table import Indices


def narrow_tensor(module: nn.Module, name: str, dim: int, keep: Indices) -> None:
    """Keep these entries of a parameter or buffer along a dimension (None: all)."""
    old = getattr(module, name)
    if old is None or keep is None:
        return
    kept = indices(keep, old.shape[dim]).to(old.device)
    new = like_strides(old.detach().index_select(dim, kept), old)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def indices(keep: Indices, width: int) -> Tensor:
    """The indices that are kept, all of `width` for None; SurgeryError where they do not exist."""
    if keep is None:
        return torch.arange(width)
    kept = torch.as_tensor(keep, dtype=torch.long).cpu()
    if len(kept) == 0:
        raise SurgeryError(f"none of {width} channels would be left; keep at least one")
    if int(kept.min()) < 0 or int(kept.max()) >= width:
        raise SurgeryError(f"channel {int(kept.max())} does not exist, there are {width}")
    return kept


def kept_indices(units: Tensor, drop: Tensor) -> tuple[int, ...] | None:
    """The places in `units` of those that are False in `drop`, a mask over ids; None for all."""
    gone = drop[units]
    return tuple((~gone).nonzero().flatten().tolist()) if bool(gone.any()) else None


def renumber(found: Tensor, among: Sequence[int]) -> None:
    """Make indices among all channels indices among those that are left, in place."""
    left = torch.tensor(among, device=found.device, dtype=found.dtype)
    found.copy_(torch.searchsorted(left, found))


def put_weight_back(model: nn.Module, name: str, layer: nn.Module) -> None:
    """A layer made around a parameter is not part of the network: its new weight is."""
    owner, _, leaf = name.rpartition(".")
    home = model.get_submodule(owner)
    if leaf in home._parameters:
        setattr(home, leaf, layer.weight)


def common_indices(keep_in: Indices, keep_out: Indices) -> Indices:
    """What a layer keeps that has the same channels on both sides."""
    return keep_in if keep_out is None else keep_out


def select_entries(weight: Tensor, dim: int, kept: Tensor) -> Tensor:
    """These entries of a weight along a dimension."""
    if len(kept) == weight.shape[dim]:
        return weight
    return weight.index_select(dim, kept.to(weight.device))


def replace_parameter(module: nn.Module, name: str, values: Tensor) -> None:
    """Give a layer another parameter, as frozen as the old one, in memory in its order."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(like_strides(values, old), requires_grad=old.requires_grad))
