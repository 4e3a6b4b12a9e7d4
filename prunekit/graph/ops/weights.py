"""Convolutions and linear maps, whose outputs are new channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from prunekit.errors import SurgeryError
from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, resize, spread
from prunekit.graph.layers import (
    CONVOLUTIONS,
    TRANSPOSED,
    WEIGHTED_LAYERS,
    channel_dim,
    layer_named,
    weight_norm,
)
from prunekit.graph.ops.rules import ELSEWHERE, not_followed, varies_elsewhere
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.replay import Replay
from prunekit.graph.shapes import convolution_shape, functional_shape, linear_shape
from prunekit.graph.slicing import indices, narrow_tensor, replace_parameter, select_entries
from prunekit.graph.table import (
    Indices,
    channels_last,
    named_arguments,
    named_operation,
    register_operation,
)
from prunekit.graph.whole_groups import WholeGroups


def dense(replay: Replay, call: Call) -> Any:
    """Pass a convolution or linear layer with a weight of its own."""
    value, *others = call.values
    dim = channel_dim(call.module, value.meta.ndim)
    if others or varies_elsewhere(replay, call, dim):
        return replay.freeze_inputs(call, ELSEWHERE)
    if _computed_weight(call.module):
        return replay.freeze_inputs(
            call, "its weight is computed; remove the parametrisation first"
        )
    return _layer_output(value, dim, *replay.visit_layer(call, value.along(dim)))


def by_function(replay: Replay, call: Call) -> Any:
    """Pass a function whose weight is a parameter like a layer."""
    layer_call = _layer_call(replay.network, call)
    value, weight, *others = call.values
    dim = value.meta.ndim - weight.meta.ndim + 1
    if layer_call is None or varies_elsewhere(replay, call, dim):
        return replay.freeze_inputs(call, "its weight is no parameter of a plain layer")
    meta, labels = replay.visit_layer(layer_call, value.along(dim))
    for bias in (
        [] if layer_call.module.bias is not None else others
    ):  # the bias of the layer needs no tie
        replay.unite(bias.along(0), labels if bias.source else torch.zeros_like(labels), call)
    return _layer_output(value, dim, meta, labels)


def _layer_output(value: LabeledTensor, dim: int, meta: Tensor, labels: Tensor) -> LabeledTensor:
    """Return the output of a layer: new labels along the dimension of channels."""
    return LabeledTensor(resize(meta, dim, len(labels)), spread(labels, dim, meta.ndim))


def _layer_call(network: nn.Module, call: Call) -> Call | None:
    """Return the call with the layer that its weight belongs to; None if that is not clear."""
    path = weight_path(network, call.step)
    if path is None:
        return None
    owner, _, _ = path.rpartition(".")
    layer = network.get_submodule(owner)
    if isinstance(layer, WEIGHTED_LAYERS):
        return replace(call, module=layer, owner=owner)
    groups = call.argument(6, "groups", default=1)
    layer = layer_named(network, path)
    return replace(call, module=layer, owner=path) if groups == 1 else None


def weight_path(network: nn.Module, step: Step) -> str | None:
    """Return the path of the parameter that a function uses as its weight, or None.

    The function is a convolution or linear map. None stands for a weight that is computed, and for
    one whose layer is used with another bias than its own.
    """
    entry = named_operation(step.name)
    if entry is None or not entry.weighted or not entry.argument_names:
        return None
    arguments = named_arguments(entry, step.args, step.kwargs)
    weight, bias = arguments.get("weight"), arguments.get("bias")
    if not isinstance(weight, Step) or weight.kind is not Kind.TENSOR:
        return None
    owner, _, leaf = str(weight.target).rpartition(".")
    layer = network.get_submodule(owner)
    if isinstance(layer, WEIGHTED_LAYERS):
        own_bias = f"{owner}.bias" if layer.bias is not None else None
        given_bias = str(bias.target) if isinstance(bias, Step) else bias
        own_weight = leaf == "weight" and given_bias == own_bias and type(layer) not in TRANSPOSED
        return str(weight.target) if own_weight and leaf in layer._parameters else None
    return str(weight.target) if isinstance(getattr(layer, leaf), nn.Parameter) else None


def _computed_weight(module: nn.Module) -> bool:
    """Return whether the weight of a layer is computed, other than by weight normalisation."""
    base = next(cls for cls in WEIGHTED_LAYERS if isinstance(module, cls))
    forward = getattr(type(module), "_conv_forward", None)
    overridden = forward is not getattr(base, "_conv_forward", None)
    return overridden or ("weight" not in module._parameters and weight_norm(module) is None)


def _in_front(module: Any, rank: int) -> int:
    """Return the dimension of channels, which is in front of the positions."""
    return rank - len(module.kernel_size) - 1


def narrow_convolution(module: Any, keep_in: Indices, keep_out: Indices) -> None:
    """Narrow a weight (outer, inner / groups, ...): outer are outputs, or inputs if transposed."""
    kept_in = indices(keep_in, module.in_channels)
    kept_out = indices(keep_out, module.out_channels)
    kept = (kept_in, kept_out) if module.transposed else (kept_out, kept_in)
    widths = (module.in_channels, module.out_channels)
    outer, inner = widths if module.transposed else widths[::-1]
    whole = _whole_groups(module, kept_in, kept_out)
    if whole is not None:
        module.groups = len(whole)
        sliced = select_entries(weight_of(module), 0, kept[0])
    elif 1 < module.groups == module.in_channels:  # depthwise: a group is removed with its channel
        _same_number(kept_out, widths[1] // module.groups, module.groups, among=kept_in)
        module.groups = len(kept_in)
        sliced = weight_of(module)[kept[0].to(module.weight.device)]
    else:
        _same_number(kept[0], outer // module.groups, module.groups)
        _same_number(kept[1], inner // module.groups, module.groups)
        sliced = _grouped(weight_of(module), *kept, inner // module.groups, module.groups)
    put_weight(module, sliced)
    module.in_channels, module.out_channels = len(kept_in), len(kept_out)
    narrow_tensor(module, "bias", 0, keep_out)


def narrow_linear(module: nn.Linear, keep_in: Indices, keep_out: Indices) -> None:
    """Keep rows and columns of the matrix."""
    kept_in = indices(keep_in, module.in_features)
    kept_out = indices(keep_out, module.out_features)
    put_weight(module, select_entries(select_entries(weight_of(module), 0, kept_out), 1, kept_in))
    narrow_tensor(module, "bias", 0, keep_out)
    module.in_features, module.out_features = len(kept_in), len(kept_out)


def put_weight(module: nn.Module, weight: Tensor) -> None:
    """Replace a layer's weight; a normalised one gets the magnitude and direction that compute it.

    So the kept entries have their values: g v / |v| has a shorter v, and a g to match.
    """
    norm = weight_norm(module)
    if norm is None:
        replace_parameter(module, "weight", weight)
    elif norm is not module:
        originals = module.get_submodule("parametrizations.weight")
        for name, part in zip(("original0", "original1"), norm.right_inverse(weight), strict=True):
            replace_parameter(originals, name, part)
    else:
        replace_parameter(module, "weight_g", torch.norm_except_dim(weight, 2, _hook(module).dim))
        replace_parameter(module, "weight_v", weight)
        module.weight = weight


def weight_of(module: Any) -> Tensor:
    """Return a layer's weight.

    The older hook of weight normalisation computes it anew, since the attribute may be outdated.
    """
    computed = weight_norm(module) is module
    weight: Tensor = _hook(module).compute_weight(module) if computed else module.weight
    return weight.detach()


def zero_filters(module: Any) -> Tensor:
    """Return a mask of the output channels of a layer for which all weights are zero."""
    zero = weight_of(module) == 0
    if isinstance(module, TRANSPOSED):  # inputs come first, and those of a group together
        return (
            zero.reshape(module.groups, -1, zero.shape[1], zero[0, 0].numel())
            .all(3)
            .all(1)
            .flatten()
        )
    return zero.flatten(1).all(1)


def _hook(module: nn.Module) -> WeightNorm:
    return next(h for h in module._forward_pre_hooks.values() if isinstance(h, WeightNorm))


def _whole_groups(module: Any, kept_in: Tensor, kept_out: Tensor) -> Tensor | None:
    """Return the kept groups if the others lose all inputs and outputs, and None otherwise."""
    sizes = [width // module.groups for width in (module.in_channels, module.out_channels)]
    chosen: Tensor = (kept_in // sizes[0]).unique()
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
    """Return all channels of these groups, in order."""
    return (groups[:, None] * size + torch.arange(size)).flatten()


def _grouped(weight: Tensor, outer: Tensor, inner: Tensor, width: int, groups: int) -> Tensor:
    if groups == 1:
        return select_entries(select_entries(weight, 0, outer), 1, inner)
    chunks = weight[outer.to(weight.device)].chunk(groups)
    columns = (inner % width).to(weight.device).chunk(groups)
    return torch.cat([chunk.index_select(1, c) for chunk, c in zip(chunks, columns, strict=True)])


def _same_number(kept: Tensor, width: int, groups: int, among: Tensor | None = None) -> None:
    """Raise SurgeryError if the groups (or those in `among`) keep different numbers of channels."""
    counts = torch.bincount(kept // width, minlength=groups)
    chosen = counts if among is None else counts[among]
    if len(set(chosen.tolist())) != 1 or chosen.sum() != counts.sum():
        raise SurgeryError(
            f"its {groups} convolution groups would keep {counts.tolist()} channels; "
            "keep the same number in each"
        )


def _attention(call: Call) -> int:
    """Return the multiply-adds of the projections of nn.MultiheadAttention.

    Torch's fused kernel hides them from its counter.
    """
    module, (query, key, value, *_) = call.module, call.values
    inputs = (query, module.embed_dim), (key, module.kdim), (value, module.vdim)
    embed_dim: int = module.embed_dim
    tokens = query.meta.numel() // embed_dim
    projected: int = sum(tensor.meta.numel() // width * width for tensor, width in inputs)
    return projected * embed_dim + tokens * embed_dim * embed_dim


_FACTS: dict[str, Any] = {"weighted": True, "emits_bias": True}
_LAYER: dict[str, Any] = {
    "narrow": narrow_convolution,
    "width_attributes": ("in_channels", "out_channels"),
    "channel_dim": _in_front,
}
register_operation(dense, "", *CONVOLUTIONS, layer_shape=convolution_shape, **_LAYER, **_FACTS)
register_operation(dense, "", *TRANSPOSED, **_LAYER, **_FACTS)
register_operation(
    dense,
    "",
    nn.Linear,
    narrow=narrow_linear,
    width_attributes=("in_features", "out_features"),
    channel_dim=channels_last,
    layer_shape=linear_shape,
    **_FACTS,
)
register_operation(
    by_function,
    "conv1d conv2d conv3d linear",
    argument_names=("input", "weight", "bias"),
    result_shape=functional_shape,
    **_FACTS,
)
register_operation(
    not_followed, "conv_transpose1d conv_transpose2d conv_transpose3d", weighted=True
)
register_operation(not_followed, "", nn.MultiheadAttention, macs=_attention)
