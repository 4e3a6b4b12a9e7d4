"""Nonlinearities and dropout: every entry by itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.passing import along_dim, elementwise, not_followed
from prunekit.graph.table import register_operation


def is_relu(call: Call) -> bool:
    """Whether a call is a ReLU, of whatever upper bound."""
    return call.entry is not None and (call.entry.is_relu or is_relu6(call.name, call.kwargs))


def is_relu6(name: str | None, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function is what nn.ReLU6 makes of itself: a hardtanh from 0 on."""
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
register_operation(not_followed, "scaled_dot_product_attention", dropout_rate_position=4)
register_operation(not_followed, "multi_head_attention_forward", dropout_rate_position=10)
