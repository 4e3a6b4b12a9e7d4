"""How labels pass through the layers of torch.nn: a table from classes to rules."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm

from prunekit.errors import SurgeryError
from prunekit.graph import moves, rules
from prunekit.graph.calls import Call
from prunekit.graph.rules import Rule
from prunekit.graph.select import ChannelSelection
from prunekit.graph.steps import Kind, Step
from prunekit.graph.values import Value, resize, spread

if TYPE_CHECKING:
    from prunekit.graph.labels import Run

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONSUMERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
PER_CHANNEL = (*BATCH_NORMS, *INSTANCE_NORMS, nn.PReLU)
NORMS_OF_GROUPS = (nn.GroupNorm,)


RULES: dict[str, Rule] = {**rules.STILL, **moves.MOVING}


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
            return around(getattr(model.get_submodule(owner), leaf))
        raise SurgeryError(f"{type(model).__name__} has no layer {name!r}; {mend}") from error


def around(weight: nn.Parameter) -> nn.Module:
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
    if isinstance(module, nn.Linear):
        return rank - 1
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return rank - len(module.kernel_size) - 1
    return 1


def dense(run: Run, call: Call) -> Any:
    """Convolutions and linear layers: channels end here and others begin."""
    value, *others = call.values
    dim = channel_dim(call.module, value.meta.ndim)
    if others or _elsewhere(run, call, dim):
        return rules.unknown(run, call, "its input holds channels in more than one place")
    if _computed_weight(call.module):
        return rules.unknown(run, call, "its weight is computed; remove the parametrisation first")
    meta, labels = run.layer(call, value.along(dim))
    return Value(resize(meta, dim, len(labels)), spread(labels, dim, meta.ndim))


def _elsewhere(run: Run, call: Call, dim: int) -> bool:
    """Whether the first value has channels in another dimension, before anything was frozen."""
    return bool(set(run.originals(call)[0].varying) - {dim})


def by_function(run: Run, call: Call) -> Any:
    """A convolution or linear map with weights that are parameters: a layer all the same."""
    weighing = _weighing(run.twin, call)
    value, weight, *others = call.values
    dim = value.meta.ndim - weight.meta.ndim + 1
    if weighing is None or _elsewhere(run, call, dim):
        return rules.unknown(run, call, "its weight is no parameter of a plain layer")
    meta, labels = run.layer(weighing, value.along(dim))
    for bias in [] if weighing.module.bias is not None else others:  # else the layer's own
        run.unite(bias.along(0), labels if bias.source else torch.zeros_like(labels), call)
    return Value(resize(meta, dim, len(labels)), spread(labels, dim, meta.ndim))


def norm_by_function(run: Run, call: Call) -> Any:
    """Statistics, scales and shifts given as arguments belong to the channels they meet."""
    value, *others = call.values
    if value.meta.ndim < 2 or _elsewhere(run, call, 1):
        return rules.unknown(run, call, "its input holds channels in more than one place")
    labels, owner = value.along(1), norm_owner(run.twin, call.step)
    if owner is not None:
        run.norm(replace(call, module=run.twin.get_submodule(owner), weighs=owner), labels)
        return Value(value.meta, value.labels)
    for other in others:
        if other.meta.numel() > 1:
            run.unite(other.full().flatten(), labels, call)
    return Value(value.meta, value.labels)


def norm_owner(twin: nn.Module, step: Step) -> str | None:
    """The layer whose statistics, scale and shift a function is given; None if they are others."""
    if step.name not in _NORM_FUNCTIONS:
        return None
    given = [str(one.target) for one in step.sources if one.kind is Kind.TENSOR]
    owners = {path.rpartition(".")[0] for path in given}
    owner = owners.pop() if len(owners) == 1 else None
    found = owner is not None and isinstance(twin.get_submodule(owner), PER_CHANNEL)
    return owner if found else None


def _weighing(twin: nn.Module, call: Call) -> Call | None:
    """The call with the layer that its weight belongs to; None where that is not clear."""
    path = weight_path(twin, call.step)
    if path is None:
        return None
    owner, _, _ = path.rpartition(".")
    layer = twin.get_submodule(owner)
    if isinstance(layer, CONSUMERS):
        return replace(call, module=layer, weighs=owner)
    groups = call.argument(6, "groups", default=1)
    found = layer_named(twin, path)
    return replace(call, module=found, weighs=path) if groups == 1 else None


def weight_path(twin: nn.Module, step: Step) -> str | None:
    """The path of the parameter that a functional convolution or linear map takes as its weight.

    None if it is computed, or if the layer that owns it also gets a bias of somebody else.
    """
    if step.name not in FUNCTIONS:
        return None
    given = dict(zip(("input", "weight", "bias"), step.args, strict=False)) | step.kwargs
    weight, bias = given.get("weight"), given.get("bias")
    if not isinstance(weight, Step) or weight.kind is not Kind.TENSOR:
        return None
    owner, _, leaf = str(weight.target).rpartition(".")
    layer = twin.get_submodule(owner)
    if isinstance(layer, CONSUMERS):
        own = f"{owner}.bias" if layer.bias is not None else None
        given_bias = str(bias.target) if isinstance(bias, Step) else bias
        fits = leaf == "weight" and given_bias == own and type(layer) not in TRANSPOSED
        return str(weight.target) if fits and leaf in layer._parameters else None
    return str(weight.target) if isinstance(getattr(layer, leaf), nn.Parameter) else None


FUNCTIONS = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
_NORM_FUNCTIONS = frozenset({"batch_norm", "instance_norm", "prelu"})


def per_channel(run: Run, call: Call) -> Any:
    """Normalisation and the like: parameters for every channel, which pass."""
    value, *others = call.values
    if others or value.meta.ndim < 2 or _elsewhere(run, call, 1):
        return rules.unknown(run, call, "its input holds channels in more than one place")
    if isinstance(call.module, nn.PReLU) and call.module.num_parameters == 1:
        return Value(value.meta, value.labels)
    run.norm(call, value.along(1))
    return Value(value.meta, value.labels)


def group_norm(run: Run, call: Call) -> Any:
    """The channels that are normalised together vanish together, which leaves the rest exact."""
    value = call.values[0]
    if _elsewhere(run, call, 1):
        return rules.unknown(run, call, "its input holds channels in more than one place")
    labels = value.along(1)
    rows = labels.reshape(-1, call.module.num_channels // call.module.num_groups)
    run.unite(rows, rows[:, :1], call)
    run.norm(call, labels)
    return Value(value.meta, value.labels)


def layer_norm(run: Run, call: Call) -> Any:
    """Norms over channels: frozen, or followed where that was asked for."""
    value, module = call.values[0], call.module
    own = type(module).forward is not nn.LayerNorm.forward
    dims = list(value.varying) if own else []
    if not own:
        dims = [d for d in value.varying if d >= value.meta.ndim - len(module.normalized_shape)]
    if not dims:
        return rules.layer_norm(run, call) if not own else Value(value.meta, value.labels)
    alone = len(value.varying) == 1 and len(module.normalized_shape) == 1
    if not (run.over_norms and alone):
        return rules.unknown(run, call, "it mixes channels")
    run.norm(call, value.along(dims[0]))
    return Value(value.meta, value.labels)


def selected(run: Run, call: Call) -> Any:
    """What is picked are channels of their own, what it is picked from stays."""
    value = call.values[0]
    if _elsewhere(run, call, 1):
        return rules.unknown(run, call, "its input holds channels in more than one place")
    run.freeze(value.labels, None, "being read through a channel selection")
    meta, labels = run.layer(call, value.along(1))
    return Value(resize(meta, 1, len(labels)), spread(labels, 1, meta.ndim))


def widths(module: nn.Module) -> tuple[int, int]:
    """The input and output channels that a layer holds parameters for."""
    if isinstance(module, ChannelSelection):
        return module.width, len(module.kept)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, CONSUMERS):
        return module.in_channels, module.out_channels
    return (width_of(module),) * 2


def width_of(module: nn.Module) -> int:
    """How many channels a layer that works per channel holds parameters for."""
    names = ("num_features", "num_parameters", "num_channels")
    found = [getattr(module, name) for name in names if hasattr(module, name)]
    return found[0] if found else module.normalized_shape[-1]


def weight_norm(module: nn.Module) -> Any:
    """The weight normalisation of a layer that has one, by parametrisation or by the older hook."""
    if parametrize.is_parametrized(module, "weight"):
        chain = module.parametrizations.weight
        plain = len(chain) == 1 and isinstance(chain[0], _WeightNorm) and chain[0].dim == 0
        return chain[0] if plain else None
    if {"weight_g", "weight_v"} <= module._parameters.keys():
        return module
    return None


def _computed_weight(module: nn.Module) -> bool:
    plain = type(module)
    base = next(cls for cls in CONSUMERS if isinstance(module, cls))
    overridden = getattr(plain, "_conv_forward", None) is not getattr(base, "_conv_forward", None)
    return overridden or ("weight" not in module._parameters and weight_norm(module) is None)


_POINTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardsigmoid),
    *(nn.Hardswish, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign, nn.Threshold),
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    nn.FeatureAlphaDropout,
)
_SPATIAL = {
    1: (nn.MaxPool1d, nn.AvgPool1d, nn.LPPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.MaxPool3d, nn.AvgPool3d, nn.LPPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
_SPATIAL_PADS = {
    1: (nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
    2: (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    3: (nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d),
}
_ZERO_PADS = (
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)

LAYERS: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(CONSUMERS, dense),
    **dict.fromkeys(PER_CHANNEL, per_channel),
    **dict.fromkeys(_POINTWISE, rules.activation),
    **{
        layer: rules.spatial(rank)
        for table in (_SPATIAL, _SPATIAL_PADS)
        for rank, layers in table.items()
        for layer in layers
    },
    **dict.fromkeys(_ZERO_PADS, moves.padded),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingBilinear2d), rules.spatial(None)),
    **dict.fromkeys((nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle), moves.move),
    nn.UpsamplingNearest2d: rules.spatial(None),
    nn.Unflatten: moves.sized(2, "unflattened_size"),
    nn.ChannelShuffle: moves.shuffle,
    **dict.fromkeys((nn.Softmax, nn.LogSoftmax, nn.Softmin), rules.normalise(None)),
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    ChannelSelection: selected,
}


RULES |= dict.fromkeys(FUNCTIONS, by_function)
RULES |= dict.fromkeys(_NORM_FUNCTIONS, norm_by_function)


# layers whose results depend on more than labels
SIZED = (nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten, nn.ChannelShuffle)


def rule_of(call: Call) -> Rule:
    """The rule for a call, or `rules.unknown`; a subclass of a layer follows its base."""
    if isinstance(call.op, type) and issubclass(call.op, tuple | dict):
        return rules.structure
    if call.module is None:
        return RULES.get(call.name or "", rules.unknown)
    return next((LAYERS[cls] for cls in type(call.module).__mro__ if cls in LAYERS), rules.unknown)


def has_rule(module: nn.Module) -> bool:
    """Whether it is known what layers of this class do to channels."""
    return any(cls in LAYERS for cls in type(module).__mro__)
