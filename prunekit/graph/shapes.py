"""Shapes of results, computed without running the operation on the meta device, which is slow.

None stands for calls that are left to torch, also those that torch refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.labels import broadcast_shape
from prunekit.graph.table import Sizes, layer_operation, named_operation

_META = torch.device("meta")


def quick_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the meta result of a layer with one input if its shape is known, else None."""
    entry = layer_operation(module)
    if entry is None or kwargs or len(args) != 1:
        return None
    (x,) = args
    if module._modules or not x.is_floating_point():
        return None
    if entry.same_shape:
        return x if getattr(module, "inplace", False) else _empty(x, x.shape)
    shape = None if entry.layer_shape is None else entry.layer_shape(module, x)
    return None if shape is None else _empty(x, shape)


def quick_call(
    operation: str | None, args: tuple[Any, ...], kwargs: dict[str, Any], inplace: bool
) -> Tensor | None:
    """Return the meta result of a function if its shape is known, and None otherwise."""
    entry, first = named_operation(operation), args[0] if args else None
    if entry is not None and entry.concatenates and isinstance(first, tuple | list) and first:
        first = first[0]
    if entry is None or not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if "out" in kwargs or "dtype" in kwargs or "memory_format" in kwargs:
        return None
    if entry.same_shape:
        return first if inplace else _empty(first, first.shape)
    if entry.broadcasts and len(args) == 2 and not kwargs:
        return _broadcast(first, args[1], inplace)
    if entry.result_shape is not None and not inplace:
        with suppress(TypeError):  # arguments under other names are left to torch
            shape = entry.result_shape(*args, **kwargs)
            return None if shape is None else _empty(first, shape)
    return None


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=_META)


def _broadcast(first: Tensor, other: Any, inplace: bool) -> Tensor | None:
    if isinstance(other, Tensor):
        if other.dtype != first.dtype:
            return None
        same = other.shape == first.shape
        shape = first.shape if same else broadcast_shape(first.shape, other.shape)
    elif isinstance(other, int | float) and not isinstance(other, bool):
        shape = first.shape
    else:
        return None
    if inplace:
        return first if shape == first.shape else None
    return _empty(first, shape)


def linear_shape(module: nn.Linear, x: Tensor) -> Sizes:
    """Return the shape of the output of a linear layer."""
    return _linear_shape(x, *_parameters(module))


def convolution_shape(module: Any, x: Tensor) -> Sizes:
    """Return the shape of the output of a convolution."""
    settings = module.stride, module.padding, module.dilation, module.groups
    return _conv_shape(x, *_parameters(module), *settings)


def functional_shape(
    x: Tensor, weight: Any, bias: Any = None, *settings: Any, **more: Any
) -> Sizes:
    """Return the shape of the result of `linear`, `conv1d` and the others."""
    if more or not isinstance(weight, Tensor):
        return None
    if weight.ndim == 2:
        return None if settings else _linear_shape(x, weight, bias)
    return _conv_shape(x, weight, bias, *settings)


def cat_shape(tensors: Any, dim: Any = 0) -> Sizes:
    """Return the shape of the result of `cat`."""
    first, *others = tensors
    if not isinstance(dim, int) or any(not _concatenable(first, other, dim) for other in others):
        return None
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return shape


def reduced_shape(x: Tensor, dim: Any = None, keepdim: Any = False) -> Sizes:
    """Return the shape of a mean over dimensions."""
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, tuple | list) or not dims or not _valid_dims(dims, x.ndim):
        return None
    reduced = {index % x.ndim for index in dims}
    if len(reduced) != len(dims):
        return None
    sizes = [1 if index in reduced else size for index, size in enumerate(x.shape)]
    return sizes if keepdim else [size for index, size in enumerate(sizes) if index not in reduced]


def adaptive_pool_shapes(rank: int) -> tuple[Callable[..., Sizes], Callable[..., Sizes]]:
    """Return two functions for the results of adaptive pooling over `rank` dimensions.

    They are those of the function and of the layer.
    """

    def function(x: Tensor, output_size: Any) -> Sizes:
        sizes = [output_size] * rank if isinstance(output_size, int) else [*(output_size or ())]
        valid = len(sizes) == rank and all(isinstance(size, int) and size > 0 for size in sizes)
        if not valid or x.ndim != rank + 2 or not x.numel():
            return None
        return (*x.shape[:2], *sizes)

    return function, lambda module, x: function(x, module.output_size)


def _parameters(module: nn.Module) -> tuple[Any, Any]:
    """Return the weight and the bias that are parameters; computed ones are left to torch."""
    return module._parameters.get("weight"), module._parameters.get("bias")


def _linear_shape(x: Tensor, weight: Tensor | None, bias: Any = None) -> Sizes:
    if weight is None or not _compatible(x, weight, bias) or x.shape[-1:] != weight.shape[1:]:
        return None
    return (*x.shape[:-1], weight.shape[0])


def _conv_shape(
    x: Tensor,
    weight: Tensor | None,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Sizes:
    if weight is None or not _compatible(x, weight, bias) or x.ndim != weight.ndim:
        return None
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups or not x.numel():
        return None
    rank = x.ndim - 2
    sides = [
        [setting] * rank if isinstance(setting, int) else setting
        for setting in (stride, padding, dilation)
    ]
    if isinstance(padding, str) or any(len(side) != rank for side in sides):
        return None
    sizes = [
        (size + 2 * padded - apart * (kernel - 1) - 1) // step + 1
        for size, kernel, step, padded, apart in zip(
            x.shape[2:], weight.shape[2:], *sides, strict=True
        )
    ]
    return (x.shape[0], weight.shape[0], *sizes) if min(sizes) > 0 else None


def _compatible(x: Tensor, weight: Tensor, bias: Any) -> bool:
    """Return whether types are equal, and the bias has a number for every output."""
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        return False
    return x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)


def _concatenable(first: Any, other: Any, dim: int) -> bool:
    """Return whether two tensors can be concatenated along a dimension without type promotion."""
    if not isinstance(other, Tensor) or other.dtype != first.dtype or other.ndim != first.ndim:
        return False
    if not -first.ndim <= dim < first.ndim:
        return False
    dim = dim % first.ndim
    shape, other_shape = first.shape, other.shape
    return bool(shape[:dim] == other_shape[:dim] and shape[dim + 1 :] == other_shape[dim + 1 :])


def _valid_dims(dims: Sequence[Any], rank: int) -> bool:
    return all(isinstance(dim, int) and -rank <= dim < rank for dim in dims)
