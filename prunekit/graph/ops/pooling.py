"""Pooling, resizing and padding of maps, over the last dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, compress
from prunekit.graph.ops.rules import spatial
from prunekit.graph.replay import Replay
from prunekit.graph.shapes import adaptive_pool_shapes
from prunekit.graph.table import register_operation

_POOLS = ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool")
_FUNCTIONS = ("max_pool", "avg_pool", "lp_pool", "adaptive_max_pool")
_PADS = ("ReflectionPad", "ReplicationPad", "CircularPad")
_ZERO_PADS = ("ZeroPad", "ConstantPad")


def pad(replay: Replay, call: Call) -> Any:
    """Pad a tensor.

    Padding along channels adds frozen entries; other padding belongs to its channel.
    """
    value = call.values[0]
    amounts = list(call.argument(1, "pad", "padding"))
    mode = call.argument(2, "mode", default="constant")
    labels = value.labels
    for offset in range(len(amounts) // 2):
        dim = value.meta.ndim - 1 - offset
        channels = dim in value.varying or (dim == 1 and value.meta.shape[dim] == 1)
        if channels and any(amounts[2 * offset : 2 * offset + 2]):
            if mode != "constant":
                return replay.freeze_inputs(call, "it pads channels with copies of others")
            sides = [0, 0] * offset + amounts[2 * offset : 2 * offset + 2]
            labels = torch.nn.functional.pad(labels, sides)
    return LabeledTensor(call.meta_result(), compress(labels))


for _rank in (1, 2, 3):
    register_operation(
        spatial(_rank),
        " ".join(f"{name}{_rank}d" for name in _FUNCTIONS),
        *(getattr(nn, f"{name}{_rank}d") for name in _POOLS),
        pools=True,
    )
    _function, _layer = adaptive_pool_shapes(_rank)
    register_operation(
        spatial(_rank),
        f"adaptive_avg_pool{_rank}d",
        getattr(nn, f"AdaptiveAvgPool{_rank}d"),
        pools=True,
        result_shape=_function,
        layer_shape=_layer,
    )
    register_operation(spatial(_rank), "", *(getattr(nn, f"{name}{_rank}d") for name in _PADS))
register_operation(spatial(2), "fractional_max_pool2d", nn.FractionalMaxPool2d, pools=True)
register_operation(
    pad, "", *(getattr(nn, f"{name}{rank}d") for name in _ZERO_PADS for rank in (1, 2, 3))
)
register_operation(pad, "pad", moves=True)
register_operation(
    spatial(None),
    "interpolate upsample upsample_nearest upsample_bilinear",
    *(nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
)
