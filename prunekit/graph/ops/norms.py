"""Norm layers, and other layers and functions with numbers for every channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor
from prunekit.graph.ops.rules import (
    ELSEWHERE,
    along_dim,
    mix_dims,
    not_followed,
    varies_elsewhere,
)
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.replay import Replay
from prunekit.graph.slicing import common_indices, indices, narrow_tensor
from prunekit.graph.table import Indices, layer_operation, named_operation, register_operation

Narrow = Callable[[Any, Indices, Indices], None]


def per_channel(replay: Replay, call: Call) -> Any:
    """Pass a layer with numbers for every channel."""
    value, *others = call.values
    if others or value.meta.ndim < 2 or varies_elsewhere(replay, call, 1):
        return replay.freeze_inputs(call, ELSEWHERE)
    if isinstance(call.module, nn.PReLU) and call.module.num_parameters == 1:
        return LabeledTensor(value.meta, value.labels)
    replay.visit_norm(call, value.along(1))
    return LabeledTensor(value.meta, value.labels)


def by_function(replay: Replay, call: Call) -> Any:
    """Pass a function that is given statistics, scales and shifts of channels."""
    value, *others = call.values
    if value.meta.ndim < 2 or varies_elsewhere(replay, call, 1):
        return replay.freeze_inputs(call, ELSEWHERE)
    return _with_parameters(replay, call, value.along(1), others)


def _with_parameters(
    replay: Replay, call: Call, labels: Tensor, others: list[LabeledTensor]
) -> LabeledTensor:
    """Pass a function with the parameters of a layer, or with other tensors."""
    value, owner = call.values[0], norm_owner(replay.network, call.step)
    if owner is not None:
        replay.visit_norm(
            replace(call, module=replay.network.get_submodule(owner), owner=owner), labels
        )
        return LabeledTensor(value.meta, value.labels)
    for other in others:
        if other.meta.numel() > 1:
            replay.unite(other.full().flatten(), labels, call)
    return LabeledTensor(value.meta, value.labels)


def norm_owner(network: nn.Module, step: Step) -> str | None:
    """Return the layer whose statistics, scale and shift a function is given, or None."""
    entry = named_operation(step.name)
    if entry is None or entry.weighted or not entry.argument_names:
        return None
    paths = [str(source.target) for source in step.sources if source.kind is Kind.TENSOR]
    owners = {path.rpartition(".")[0] for path in paths}
    owner = owners.pop() if len(owners) == 1 else None
    entry = None if owner is None else layer_operation(network.get_submodule(owner))
    return owner if entry is not None and entry.narrow and not entry.weighted else None


def in_groups(replay: Replay, call: Call) -> Any:
    """Unite the channels of each group, since the statistics of a kept group must not change."""
    if varies_elsewhere(replay, call, 1):
        return replay.freeze_inputs(call, ELSEWHERE)
    labels = call.values[0].along(1)
    _unite_groups(replay, call, labels, call.module.num_channels // call.module.num_groups)
    replay.visit_norm(call, labels)
    return LabeledTensor(call.values[0].meta, call.values[0].labels)


def in_groups_by_function(replay: Replay, call: Call) -> Any:
    """Do the same for a function, whose number of groups must be that of a layer, or computed."""
    value, *others = call.values
    if varies_elsewhere(replay, call, 1):
        return replay.freeze_inputs(call, ELSEWHERE)
    labels, groups = value.along(1), call.argument(1, "num_groups")
    owner = norm_owner(replay.network, call.step)
    layer: Any = None if owner is None else replay.network.get_submodule(owner)
    if getattr(layer, "num_groups", None) != groups and not isinstance(
        call.recorded_argument(1), Step
    ):
        return replay.freeze_inputs(call, "its number of groups is a constant")
    size = len(labels) // groups if layer is None else layer.num_channels // layer.num_groups
    _unite_groups(replay, call, labels, size)
    return _with_parameters(replay, call, labels, others)


def _unite_groups(replay: Replay, call: Call, labels: Tensor, size: int) -> None:
    groups = labels.reshape(-1, size)
    replay.unite(groups, groups[:, :1], call)


def over_channels(replay: Replay, call: Call) -> Any:
    """Freeze channels that are normalised over, or follow them if `over_norms` is set."""
    value, module = call.values[0], call.module
    if module is None:
        shape = call.argument(1, "normalized_shape")
        return mix_dims(replay, call, range(value.meta.ndim - len(shape), value.meta.ndim))
    permutes = _permutes(module)
    dims = list(value.varying) if permutes else []
    if not permutes:
        dims = [d for d in value.varying if d >= value.meta.ndim - len(module.normalized_shape)]
    if not dims:
        return LabeledTensor(value.meta, value.labels)
    single = len(value.varying) == 1 and len(module.normalized_shape) == 1
    if not (replay.over_norms and single):
        return replay.freeze_inputs(call, "it mixes channels")
    replay.visit_norm(call, value.along(dims[0]))
    return LabeledTensor(value.meta, value.labels)


def _permutes(module: nn.Module) -> bool:
    """Return whether a norm has a forward of its own, around torch's: then channels come second."""
    return not type(module).forward.__module__.startswith("torch.")


def _normed_dim(module: nn.Module, rank: int) -> int:
    return 1 if _permutes(module) else rank - 1


def narrow_norm(module: Any, keep_in: Indices, keep_out: Indices) -> None:
    """Keep scales, shifts and statistics."""
    keep = common_indices(keep_in, keep_out)
    for name in ("weight", "bias", "running_mean", "running_var"):
        narrow_tensor(module, name, 0, keep)
    module.num_features = module.num_features if keep is None else len(keep)


def narrow_group_norm(module: nn.GroupNorm, keep_in: Indices, keep_out: Indices) -> None:
    """Keep whole groups."""
    keep = indices(common_indices(keep_in, keep_out), module.num_channels)
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


def narrow_over_channels(module: Any, keep_in: Indices, keep_out: Indices) -> None:
    """Keep scales, and shifts if there are some, along the last dimension."""
    keep = indices(common_indices(keep_in, keep_out), module.normalized_shape[-1])
    for name in ("weight", "bias"):
        if hasattr(module, name):
            narrow_tensor(module, name, -1, keep)
    module.normalized_shape = (*module.normalized_shape[:-1], len(keep))


def narrow_prelu(module: nn.PReLU, keep_in: Indices, keep_out: Indices) -> None:
    """Keep slopes."""
    narrow_tensor(module, "weight", 0, common_indices(keep_in, keep_out))
    module.num_parameters = len(module.weight)


_BATCH = ("input", "running_mean", "running_var", "weight", "bias")
_SCALED: dict[str, Any] = {"normalizes": True, "emits_bias": True, "same_shape": True}
_FEATURES: dict[str, Any] = {"narrow": narrow_norm, "width_attributes": ("num_features",)}
register_operation(
    per_channel,
    "",
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    batch_norm=True,
    **_FEATURES,
    **_SCALED,
)
register_operation(by_function, "batch_norm", argument_names=_BATCH, batch_norm=True, **_SCALED)
register_operation(
    per_channel,
    "",
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    **_FEATURES,
    **_SCALED,
)
register_operation(by_function, "instance_norm", argument_names=_BATCH, **_SCALED)
register_operation(
    in_groups,
    "",
    nn.GroupNorm,
    narrow=narrow_group_norm,
    width_attributes=("num_channels",),
    **_SCALED,
)
register_operation(
    in_groups_by_function,
    "group_norm",
    argument_names=("input", "num_groups", "weight", "bias"),
    size_arguments=True,
    **_SCALED,
)
register_operation(
    over_channels,
    "layer_norm rms_norm",
    *(nn.LayerNorm, nn.RMSNorm),
    argument_names=("input", "normalized_shape", "weight", "bias"),
    narrow=narrow_over_channels,
    width_attributes=("normalized_shape",),
    channel_dim=_normed_dim,
    normalizes=True,
    same_shape=True,
    opaque=True,
)
register_operation(
    per_channel,
    "",
    nn.PReLU,
    narrow=narrow_prelu,
    width_attributes=("num_parameters",),
    same_shape=True,
)
register_operation(by_function, "prelu", argument_names=("input", "weight"), same_shape=True)
register_operation(
    along_dim(None),
    "softmax log_softmax softmin",
    nn.Softmax,
    nn.LogSoftmax,
    nn.Softmin,
    same_shape=True,
)
register_operation(along_dim(1, position=2), "normalize", same_shape=True)
register_operation(not_followed, "", nn.Softmax2d, nn.LocalResponseNorm, normalizes=True)
