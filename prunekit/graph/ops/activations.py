"""Nonlinearities and dropout: every entry by itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.passing import along, not_followed, pointwise
from prunekit.graph.table import operation


def rectifies(call: Call) -> bool:
    """Whether a call is a ReLU, of whatever upper bound."""
    return call.entry is not None and (call.entry.rectifies or is_relu6(call.name, call.kwargs))


def is_relu6(name: str | None, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a function is what nn.ReLU6 makes of itself: a hardtanh from 0 on."""
    return name == "hardtanh" and kwargs.get("min_val") == 0


operation(pointwise, "relu", nn.ReLU, alike=True, rectifies=True, stands_for=nn.ReLU)
operation(pointwise, "relu6", nn.ReLU6, alike=True, rectifies=True, stands_for=nn.ReLU6)
operation(pointwise, "silu", nn.SiLU, alike=True, stands_for=nn.SiLU)
operation(pointwise, "gelu", nn.GELU, alike=True, stands_for=nn.GELU)
operation(pointwise, "elu", nn.ELU, alike=True, stands_for=nn.ELU)
operation(pointwise, "hardswish", nn.Hardswish, alike=True, stands_for=nn.Hardswish)
operation(pointwise, "tanh", nn.Tanh, alike=True, stands_for=nn.Tanh)
operation(pointwise, "sigmoid", nn.Sigmoid, alike=True, stands_for=nn.Sigmoid)
operation(
    pointwise,
    "leaky_relu rrelu selu celu mish logsigmoid hardtanh hardsigmoid hardshrink softplus "
    "softshrink softsign tanhshrink threshold",
    *(nn.LeakyReLU, nn.RReLU, nn.SELU, nn.CELU, nn.Mish, nn.LogSigmoid, nn.Tanhshrink),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardshrink, nn.Softshrink, nn.Softplus, nn.Softsign),
    nn.Threshold,
    alike=True,
)
operation(pointwise, "", nn.Identity, alike=True)
operation(
    pointwise,
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout",
    *(
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        nn.FeatureAlphaDropout,
    ),
    alike=True,
    drops=True,
)
operation(along(-1), "glu")
operation(not_followed, "scaled_dot_product_attention", rate=4)
operation(not_followed, "multi_head_attention_forward", rate=10)
