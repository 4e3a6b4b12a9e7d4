"""Activations, dropout, arithmetic, comparisons and reductions."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.rules import (
    along_dim,
    elementwise,
    ignore,
    like_first,
    not_followed,
    query,
    reduction,
)
from prunekit.graph.shapes import reduced_shape
from prunekit.graph.table import register_operation


def is_relu(call: Call) -> bool:
    """Return whether a call is a ReLU, with or without an upper bound."""
    return call.entry is not None and (call.entry.is_relu or is_relu6(call.name, call.kwargs))


def is_relu6(name: str | None, kwargs: dict[str, Any]) -> bool:
    """Return whether a function is called as nn.ReLU6 calls it: a hardtanh with lower bound 0."""
    return name == "hardtanh" and kwargs.get("min_val") == 0


register_operation(elementwise, "relu", nn.ReLU, same_shape=True, is_relu=True, layer_class=nn.ReLU)
register_operation(
    elementwise, "relu6", nn.ReLU6, same_shape=True, is_relu=True, layer_class=nn.ReLU6
)
register_operation(elementwise, "silu", nn.SiLU, same_shape=True, layer_class=nn.SiLU)
register_operation(elementwise, "gelu", nn.GELU, same_shape=True, layer_class=nn.GELU)
register_operation(elementwise, "elu", nn.ELU, same_shape=True, layer_class=nn.ELU)
register_operation(
    elementwise, "hardswish", nn.Hardswish, same_shape=True, layer_class=nn.Hardswish
)
register_operation(elementwise, "tanh", nn.Tanh, same_shape=True, layer_class=nn.Tanh)
register_operation(elementwise, "sigmoid", nn.Sigmoid, same_shape=True, layer_class=nn.Sigmoid)
register_operation(
    elementwise,
    "leaky_relu rrelu selu celu mish logsigmoid hardtanh hardsigmoid hardshrink softplus "
    "softshrink softsign tanhshrink threshold",
    *(nn.LeakyReLU, nn.RReLU, nn.SELU, nn.CELU, nn.Mish, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign),
    nn.Threshold,
    same_shape=True,
)
register_operation(elementwise, "", nn.Identity, same_shape=True)
register_operation(
    elementwise,
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
    *(
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
    same_shape=True,
    is_dropout=True,
)
register_operation(along_dim(-1), "glu")
register_operation(not_followed, "multi_head_attention_forward", dropout_rate_position=10)


register_operation(elementwise, "add sub mul div truediv maximum minimum", broadcasts=True)
register_operation(
    elementwise,
    "subtract multiply divide true_divide floordiv floor_divide mod remainder fmod pow eq ne lt le "
    "gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor and or xor where "
    "masked_fill fmax fmin lerp addcmul addcdiv expand_as rsub copy float_power atan2 hypot",
)
register_operation(
    elementwise,
    "neg pos negative abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square "
    "reciprocal sin cos tan asin acos atan sinh cosh erf erfc sign round floor ceil trunc frac "
    "detach alias requires_grad fill zero zero_grad uniform normal bernoulli "
    "exponential random",
    same_shape=True,
)
register_operation(
    elementwise,
    "clamp clip clamp_min clamp_max isnan isinf isfinite nan_to_num logical_not bitwise_not not "
    "invert float half double bfloat16 int long bool type contiguous clone",
)
register_operation(
    like_first, "to type_as cpu cuda zeros_like ones_like empty_like full_like rand_like randn_like"
)
register_operation(like_first, "randint_like")
register_operation(reduction(), "mean sum amax amin", result_shape=reduced_shape)
register_operation(reduction(), "prod std var logsumexp max min argmax argmin any all median")
register_operation(reduction(), "std_mean var_mean aminmax nansum nanmean count_nonzero")
register_operation(reduction(2), "norm")
register_operation(along_dim(None), "cumsum cumprod cummax cummin")
register_operation(query, "size dim numel nelement ndimension is_floating_point stride get_device")
register_operation(ignore, "_assert")
