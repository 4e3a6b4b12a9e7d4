"""Shapes of results that the meta device would take long to find, from the arguments of a call.

None stands for a call that is left to torch, and for one that torch refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from prunekit.graph.table import Sizes


def linear_shape(module: nn.Linear, x: Tensor) -> Sizes:
    """What a linear layer returns."""
    return _linear_shape(x, *_parameters(module))


def convolution_shape(module: Any, x: Tensor) -> Sizes:
    """What a convolution returns."""
    settings = module.stride, module.padding, module.dilation, module.groups
    return _conv_shape(x, *_parameters(module), *settings)


def functional_shape(
    x: Tensor, weight: Any, bias: Any = None, *settings: Any, **more: Any
) -> Sizes:
    """What `linear`, `conv1d` and the others return."""
    if more or not isinstance(weight, Tensor):
        return None
    if weight.ndim == 2:
        return None if settings else _linear_shape(x, weight, bias)
    return _conv_shape(x, weight, bias, *settings)


def cat_shape(tensors: Any, dim: Any = 0) -> Sizes:
    """What `cat` returns."""
    first, *others = tensors
    if not isinstance(dim, int) or any(not _concatenable(first, other, dim) for other in others):
        return None
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return shape


def reduced_shape(x: Tensor, dim: Any = None, keepdim: Any = False) -> Sizes:
    """What a mean over dimensions returns."""
    dims = [dim] if isinstance(dim, int) else dim
    if not isinstance(dims, tuple | list) or not dims or not _valid_dims(dims, x.ndim):
        return None
    gone = {one % x.ndim for one in dims}
    if len(gone) != len(dims):
        return None
    sizes = [1 if one in gone else size for one, size in enumerate(x.shape)]
    return sizes if keepdim else [size for one, size in enumerate(sizes) if one not in gone]


def adaptive_pool_shapes(rank: int) -> tuple[Callable[..., Sizes], Callable[..., Sizes]]:
    """What adaptive pooling over that many dimensions returns, as a function and as a layer."""

    def function(x: Tensor, output_size: Any) -> Sizes:
        sizes = [output_size] * rank if isinstance(output_size, int) else [*(output_size or ())]
        known = len(sizes) == rank and all(isinstance(one, int) and one > 0 for one in sizes)
        if not known or x.ndim != rank + 2 or not x.numel():
            return None
        return (*x.shape[:2], *sizes)

    return function, lambda module, x: function(x, module.output_size)


def _parameters(module: nn.Module) -> tuple[Any, Any]:
    """The weight and the bias that are parameters; computed ones are left to torch."""
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
    sides = [[one] * rank if isinstance(one, int) else one for one in (stride, padding, dilation)]
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
    """Whether types go together, and the bias has a number for every output."""
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        return False
    return x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)


def _concatenable(first: Any, other: Any, dim: int) -> bool:
    """Whether two tensors can be joined along a dimension, by shapes and types that are equal."""
    if not isinstance(other, Tensor) or other.dtype != first.dtype or other.ndim != first.ndim:
        return False
    if not -first.ndim <= dim < first.ndim:
        return False
    dim = dim % first.ndim
    one, two = first.shape, other.shape
    return one[:dim] == two[:dim] and one[dim + 1 :] == two[dim + 1 :]


def _valid_dims(dims: Sequence[Any], rank: int) -> bool:
    return all(isinstance(dim, int) and -rank <= dim < rank for dim in dims)
