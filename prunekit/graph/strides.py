"""The order in which a tensor lies in memory, such as channels last."""

from __future__ import annotations

import torch
from torch import Tensor


def like_strides(tensor: Tensor, like: Tensor) -> Tensor:
    """The same numbers, in memory in the order of dimensions that `like` has.

    Of dimensions with the same stride the larger one is further out: the others have one entry.
    """
    if tensor.ndim != like.ndim or tensor.ndim < 3:
        return tensor
    inside_out = sorted(range(like.ndim), key=lambda dim: (like.stride(dim), like.shape[dim], -dim))
    strides, step = [0] * like.ndim, 1
    for dim in inside_out:
        strides[dim], step = step, step * tensor.shape[dim]
    if tuple(strides) == tensor.stride():
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
