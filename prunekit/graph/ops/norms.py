"""Normalisation, and what else holds numbers for every channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from prunekit.errors import SurgeryError
from prunekit.graph.calls import Call
from prunekit.graph.ops.passing import ELSEWHERE, along, elsewhere, not_followed, within
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.run import Run
from prunekit.graph.slicing import either, indices, narrow_tensor
from prunekit.graph.table import Indices, of_layer, of_name, operation
from prunekit.graph.values import Value

Narrow = Callable[[Any, Indices, Indices], None]


def per_channel(run: Run, call: Call) -> Any:
    """A layer with numbers for every channel, which pass."""
    value, *others = call.values
    if others or value.meta.ndim < 2 or elsewhere(run, call, 1):
        return run.unknown(call, ELSEWHERE)
    if isinstance(call.module, nn.PReLU) and call.module.num_parameters == 1:
        return Value(value.meta, value.labels)
    run.norm(call, value.along(1))
    return Value(value.meta, value.labels)


def by_function(run: Run, call: Call) -> Any:
    """Statistics, scales and shifts given as arguments belong to the channels they meet."""
    value, *others = call.values
    if value.meta.ndim < 2 or elsewhere(run, call, 1):
        return run.unknown(call, ELSEWHERE)
    return _lent(run, call, value.along(1), others)


def _lent(run: Run, call: Call, labels: Any, others: list[Value]) -> Value:
    """Pass a function with the numbers of a layer, or with others."""
    value, owner = call.values[0], norm_owner(run.twin, call.step)
    if owner is not None:
        run.norm(replace(call, module=run.twin.get_submodule(owner), owner=owner), labels)
        return Value(value.meta, value.labels)
    for other in others:
        if other.meta.numel() > 1:
            run.unite(other.full().flatten(), labels, call)
    return Value(value.meta, value.labels)


def norm_owner(twin: nn.Module, step: Step) -> str | None:
    """The layer whose statistics, scale and shift a function is given; None if they are others."""
    entry = of_name(step.name)
    if entry is None or entry.weighs or not entry.takes:
        return None
    held = [str(one.target) for one in step.sources if one.kind is Kind.TENSOR]
    owners = {path.rpartition(".")[0] for path in held}
    owner = owners.pop() if len(owners) == 1 else None
    layer = None if owner is None else of_layer(twin.get_submodule(owner))
    return owner if layer is not None and layer.narrow and not layer.weighs else None


def in_groups(run: Run, call: Call) -> Any:
    """The channels that are normalised together vanish together, which leaves the rest exact."""
    if elsewhere(run, call, 1):
        return run.unknown(call, ELSEWHERE)
    labels = call.values[0].along(1)
    _same_fate(run, call, labels, call.module.num_channels // call.module.num_groups)
    run.norm(call, labels)
    return Value(call.values[0].meta, call.values[0].labels)


def in_groups_by_function(run: Run, call: Call) -> Any:
    """The same by a function: the number of groups is that of a layer, or computed, or constant."""
    value, *others = call.values
    if elsewhere(run, call, 1):
        return run.unknown(call, ELSEWHERE)
    labels, groups = value.along(1), call.argument(1, "num_groups")
    owner = norm_owner(run.twin, call.step)
    layer = None if owner is None else run.twin.get_submodule(owner)
    if getattr(layer, "num_groups", None) != groups and not isinstance(call.written(1), Step):
        return run.unknown(call, "its number of groups is a constant")
    size = len(labels) // groups if layer is None else layer.num_channels // layer.num_groups
    _same_fate(run, call, labels, size)
    return _lent(run, call, labels, others)


def _same_fate(run: Run, call: Call, labels: Any, size: int) -> None:
    rows = labels.reshape(-1, size)
    run.unite(rows, rows[:, :1], call)


def over_channels(run: Run, call: Call) -> Any:
    """Norms over channels: frozen, or followed where that was asked for."""
    value, module = call.values[0], call.module
    if module is None:
        shape = call.argument(1, "normalized_shape")
        return within(run, call, range(value.meta.ndim - len(shape), value.meta.ndim))
    own = _permutes(module)
    dims = list(value.varying) if own else []
    if not own:
        dims = [d for d in value.varying if d >= value.meta.ndim - len(module.normalized_shape)]
    if not dims:
        return Value(value.meta, value.labels)
    alone = len(value.varying) == 1 and len(module.normalized_shape) == 1
    if not (run.over_norms and alone):
        return run.unknown(call, "it mixes channels")
    run.norm(call, value.along(dims[0]))
    return Value(value.meta, value.labels)


def _permutes(module: nn.Module) -> bool:
    """Whether a norm has a forward of its own, around torch's: then channels come second."""
    return not type(module).forward.__module__.startswith("torch.")


def _normed_dim(module: nn.Module, rank: int) -> int:
    return 1 if _permutes(module) else rank - 1


def narrow_norm(module: Any, keep_in: Indices, keep_out: Indices) -> None:
    """Keep scales, shifts and statistics."""
    keep = either(keep_in, keep_out)
    for name in ("weight", "bias", "running_mean", "running_var"):
        narrow_tensor(module, name, 0, keep)
    module.num_features = module.num_features if keep is None else len(keep)


def narrow_group_norm(module: nn.GroupNorm, keep_in: Indices, keep_out: Indices) -> None:
    """Keep whole groups."""
    keep = indices(either(keep_in, keep_out), module.num_channels)
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
    """Keep scales, and shifts where there are some, of the last dimension."""
    keep = indices(either(keep_in, keep_out), module.normalized_shape[-1])
    for name in ("weight", "bias"):
        if hasattr(module, name):
            narrow_tensor(module, name, -1, keep)
    module.normalized_shape = (*module.normalized_shape[:-1], len(keep))


def narrow_prelu(module: nn.PReLU, keep_in: Indices, keep_out: Indices) -> None:
    """Keep slopes."""
    narrow_tensor(module, "weight", 0, either(keep_in, keep_out))
    module.num_parameters = len(module.weight)


_BATCH = ("input", "running_mean", "running_var", "weight", "bias")
_SCALED: dict[str, Any] = {"norm": True, "shifts": True, "alike": True}
_FEATURES: dict[str, Any] = {"narrow": narrow_norm, "counts": ("num_features",)}
operation(
    per_channel,
    "",
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    batch_norm=True,
    **_FEATURES,
    **_SCALED,
)
operation(by_function, "batch_norm", takes=_BATCH, batch_norm=True, **_SCALED)
operation(
    per_channel,
    "",
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    **_FEATURES,
    **_SCALED,
)
operation(by_function, "instance_norm", takes=_BATCH, **_SCALED)
operation(
    in_groups,
    "",
    nn.GroupNorm,
    narrow=narrow_group_norm,
    counts=("num_channels",),
    **_SCALED,
)
operation(
    in_groups_by_function,
    "group_norm",
    takes=("input", "num_groups", "weight", "bias"),
    sized=True,
    **_SCALED,
)
operation(
    over_channels,
    "layer_norm rms_norm",
    *(nn.LayerNorm, nn.RMSNorm),
    takes=("input", "normalized_shape", "weight", "bias"),
    narrow=narrow_over_channels,
    counts=("normalized_shape",),
    dim=_normed_dim,
    norm=True,
    alike=True,
    whole=True,
)
operation(
    per_channel,
    "",
    nn.PReLU,
    narrow=narrow_prelu,
    counts=("num_parameters",),
    alike=True,
)
operation(by_function, "prelu", takes=("input", "weight"), alike=True)
operation(
    along(None), "softmax log_softmax softmin", nn.Softmax, nn.LogSoftmax, nn.Softmin, alike=True
)
operation(along(1, position=2), "normalize", alike=True)
operation(not_followed, "", nn.Softmax2d, nn.LocalResponseNorm, norm=True)
