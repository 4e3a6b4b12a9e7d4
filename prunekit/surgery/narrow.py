"""Cutting channels out of one layer, in place; a layer of your own joins by registering here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelSelection
from prunekit.graph.layers import weight_norm
from prunekit.graph.strides import arranged
from prunekit.graph.whole import WholeGroups

Indices = Sequence[int] | Tensor | None


@singledispatch
def narrow(module: nn.Module, keep_in: Indices = None, keep_out: Indices = None) -> None:
    """Keep these input and output channels of a layer, given by index (None: all).

    The layer is changed in place and gets new parameters of the old type, on the old device, in
    memory in the old order, as frozen as before. Register a function for a class with
    `@narrow.register`.
    """
    raise SurgeryError(
        f"{type(module).__name__} cannot be narrowed; register a function for it with "
        "prunekit.surgery.narrow.register"
    )


@narrow.register(nn.Conv1d)
@narrow.register(nn.Conv2d)
@narrow.register(nn.Conv3d)
@narrow.register(nn.ConvTranspose1d)
@narrow.register(nn.ConvTranspose2d)
@narrow.register(nn.ConvTranspose3d)
def _conv(module: nn.Conv2d, keep_in: Indices = None, keep_out: Indices = None) -> None:
    _convolution(module, keep_in, keep_out)


@narrow.register
def _linear(module: nn.Linear, keep_in: Indices = None, keep_out: Indices = None) -> None:
    kept_in = _indices(keep_in, module.in_features)
    kept_out = _indices(keep_out, module.out_features)
    _put_weight(module, _select(_select(_weight(module), 0, kept_out), 1, kept_in))
    narrow_tensor(module, "bias", 0, keep_out)
    module.in_features, module.out_features = len(kept_in), len(kept_out)


@narrow.register(nn.BatchNorm1d)
@narrow.register(nn.BatchNorm2d)
@narrow.register(nn.BatchNorm3d)
@narrow.register(nn.SyncBatchNorm)
@narrow.register(nn.InstanceNorm1d)
@narrow.register(nn.InstanceNorm2d)
@narrow.register(nn.InstanceNorm3d)
def _norm(module: nn.BatchNorm2d, keep_in: Indices = None, keep_out: Indices = None) -> None:
    keep = _either(keep_in, keep_out)
    for name in ("weight", "bias", "running_mean", "running_var"):
        narrow_tensor(module, name, 0, keep)
    module.num_features = module.num_features if keep is None else len(keep)


@narrow.register
def _group_norm(module: nn.GroupNorm, keep_in: Indices = None, keep_out: Indices = None) -> None:
    keep = _indices(_either(keep_in, keep_out), module.num_channels)
    size = module.num_channels // module.num_groups
    counts = torch.bincount(keep // size, minlength=module.num_groups)
    if set(counts.tolist()) - {0, size}:
        raise SurgeryError(
            f"its {module.num_groups} groups would keep {counts.tolist()} channels; "
            "keep all channels of a group or none"
        )
    for name in ("weight", "bias"):
        narrow_tensor(module, name, 0, keep)
    module.num_channels, module.num_groups = len(keep), len(keep) // size


@narrow.register
def _layer_norm(module: nn.LayerNorm, keep_in: Indices = None, keep_out: Indices = None) -> None:
    keep = _indices(_either(keep_in, keep_out), module.normalized_shape[-1])
    for name in ("weight", "bias"):
        narrow_tensor(module, name, -1, keep)
    module.normalized_shape = (*module.normalized_shape[:-1], len(keep))


@narrow.register
def _prelu(module: nn.PReLU, keep_in: Indices = None, keep_out: Indices = None) -> None:
    narrow_tensor(module, "weight", 0, _either(keep_in, keep_out))
    module.num_parameters = len(module.weight)


@narrow.register
def _selection(module: ChannelSelection, keep_in: Indices = None, keep_out: Indices = None) -> None:
    if keep_in is not None and len(_indices(keep_in, module.width)) < module.width:
        raise SurgeryError(f"it selects from {module.width} channels, all of which stay")
    narrow_tensor(module, "kept", 0, keep_out)


def _put_weight(module: nn.Module, weight: Tensor) -> None:
    """Replace a layer's weight; a normalised one gets the length and the direction that make it.

    So the entries that stay keep their values: g v / |v| has a shorter v, and a g to match.
    """
    norm = weight_norm(module)
    if norm is None:
        _put(module, "weight", weight)
    elif norm is not module:
        originals = module.parametrizations.weight
        for name, part in zip(("original0", "original1"), norm.right_inverse(weight), strict=True):
            _put(originals, name, part)
    else:
        _put(module, "weight_g", torch.norm_except_dim(weight, 2, _hook(module).dim))
        _put(module, "weight_v", weight)
        module.weight = weight


def _weight(module: nn.Module) -> Tensor:
    computed = weight_norm(module) is module  # what the older hook left there may be outdated
    return (_hook(module).compute_weight(module) if computed else module.weight).detach()


def _hook(module: nn.Module) -> WeightNorm:
    return next(h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm))


def _put(module: nn.Module, name: str, values: Tensor) -> None:
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(arranged(values, old), requires_grad=old.requires_grad))


def _convolution(module: nn.Conv2d, keep_in: Indices, keep_out: Indices) -> None:
    """Narrow a weight (outer, inner / groups, ...): outer are outputs, or inputs if transposed."""
    kept_in = _indices(keep_in, module.in_channels)
    kept_out = _indices(keep_out, module.out_channels)
    kept = (kept_in, kept_out) if module.transposed else (kept_out, kept_in)
    widths = (module.in_channels, module.out_channels)
    outer, inner = widths if module.transposed else widths[::-1]
    whole = _whole_groups(module, kept_in, kept_out)
    if whole is not None:
        module.groups = len(whole)
        sliced = _select(_weight(module), 0, kept[0])
    elif 1 < module.groups == module.in_channels:  # depthwise: a group vanishes with its channel
        _same_number(kept_out, widths[1] // module.groups, module.groups, among=kept_in)
        module.groups = len(kept_in)
        sliced = _weight(module)[kept[0].to(module.weight.device)]
    else:
        _same_number(kept[0], outer // module.groups, module.groups)
        _same_number(kept[1], inner // module.groups, module.groups)
        sliced = _grouped(_weight(module), *kept, inner // module.groups, module.groups)
    _put_weight(module, sliced)
    module.in_channels, module.out_channels = len(kept_in), len(kept_out)
    narrow_tensor(module, "bias", 0, keep_out)


def _whole_groups(module: nn.Conv2d, kept_in: Tensor, kept_out: Tensor) -> Tensor | None:
    """The groups that are kept, where the others lose all inputs and outputs; else None."""
    sizes = [width // module.groups for width in (module.in_channels, module.out_channels)]
    chosen = (kept_in // sizes[0]).unique()
    sides = [*zip((kept_in, kept_out), sizes, strict=True)]
    if all(torch.equal(kept, _channels(chosen, size)) for kept, size in sides):
        return chosen
    if isinstance(module, WholeGroups):
        ins, outs = (
            torch.bincount(kept // size, minlength=module.groups).tolist() for kept, size in sides
        )
        raise SurgeryError(
            f"its {module.groups} convolution groups would keep {ins} inputs and {outs} outputs; "
            "keep all channels of a group or none"
        )
    return None


def _channels(groups: Tensor, size: int) -> Tensor:
    """All channels of these groups, in order."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _select(weight: Tensor, dim: int, kept: Tensor) -> Tensor:
    if len(kept) == weight.shape[dim]:
        return weight
    return weight.index_select(dim, kept.to(weight.device))


def _grouped(weight: Tensor, outer: Tensor, inner: Tensor, width: int, groups: int) -> Tensor:
    if groups == 1:
        return _select(_select(weight, 0, outer), 1, inner)
    rows = weight[outer.to(weight.device)].chunk(groups)
    columns = (inner % width).to(weight.device).chunk(groups)
    return torch.cat([row.index_select(1, c) for row, c in zip(rows, columns, strict=True)])


def _same_number(kept: Tensor, width: int, groups: int, among: Tensor | None = None) -> None:
    """Refuse when the groups (or those `among` all) keep different numbers of channels."""
    counts = torch.bincount(kept // width, minlength=groups)
    chosen = counts if among is None else counts[among]
    if len(set(chosen.tolist())) != 1 or chosen.sum() != counts.sum():
        raise SurgeryError(
            f"its {groups} convolution groups would keep {counts.tolist()} channels; "
            "keep the same number in each"
        )


def narrow_tensor(module: nn.Module, name: str, dim: int, keep: Indices) -> None:
    """Keep these entries of a parameter or buffer along a dimension (None: all)."""
    old = getattr(module, name)
    if old is None or keep is None:
        return
    kept = _indices(keep, old.shape[dim]).to(old.device)
    new = arranged(old.detach().index_select(dim, kept), old)
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _indices(keep: Indices, width: int) -> Tensor:
    if keep is None:
        return torch.arange(width)
    kept = torch.as_tensor(keep, dtype=torch.long).cpu()
    if len(kept) == 0:
        raise SurgeryError(f"none of {width} channels would be left; keep at least one")
    if int(kept.min()) < 0 or int(kept.max()) >= width:
        raise SurgeryError(f"channel {int(kept.max())} does not exist, there are {width}")
    return kept


def _either(keep_in: Indices, keep_out: Indices) -> Indices:
    return keep_in if keep_out is None else keep_out
