"""Shapes of results that are known without running anything: what keeps the shape of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
_ALIKE = frozenset(
    {"relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid"}
    | {"tanh", "logsigmoid", "hardtanh", "hardsigmoid", "hardswish", "softplus", "batch_norm"}
    | {"instance_norm", "layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "neg"}
    | {"exp", "sqrt", "rsqrt", "abs", "prelu"}
)
_LAYERS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Softplus, nn.PReLU),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_KEEPING = frozenset(_LAYERS)


def quick_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The result of a layer on the meta device that keeps the shape of its one input, or None."""
    if type(module) not in _KEEPING or kwargs or len(args) != 1:
        return None
    x = args[0]
    return x if getattr(module, "inplace", False) else x.new_empty(x.shape)


def quick_call(
    operation: str | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor | None:
    """The same for a function."""
    first = args[0] if args else None
    if not isinstance(first, Tensor) or not first.is_floating_point() or "out" in kwargs:
        return None
    if operation in _ALIKE and "dtype" not in kwargs:
        inplace = name.endswith("_") or kwargs.get("inplace") or _third(operation, args)
        return first if inplace else first.new_empty(first.shape)
    if operation in _ARITHMETIC and len(args) == 2 and not kwargs:
        return _joined(first, args[1], name.endswith("_") and not name.endswith("__"))
    return None


def _third(operation: str, args: tuple[Any, ...]) -> bool:
    return any(item is True for item in args[1:]) and operation not in (
        "batch_norm",
        "instance_norm",
    )


def _joined(first: Tensor, other: Any, inplace: bool) -> Tensor | None:
    if isinstance(other, Tensor):
        if other.dtype != first.dtype or not other.is_meta:
            return None
        shape = torch.broadcast_shapes(first.shape, other.shape)
    elif isinstance(other, int | float) and not isinstance(other, bool):
        shape = first.shape
    else:
        return None
    if inplace:
        return first if shape == first.shape else None
    return first.new_empty(shape)
