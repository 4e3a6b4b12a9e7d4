"""Multiply-adds of convolutions and linear maps inside operations that are not followed."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prunekit.graph.calls import Call
from prunekit.graph.layers import TRANSPOSED, is_weighted
from prunekit.graph.recording.steps import Kind

_LINEAR_OPS = frozenset({"aten.mm", "aten.addmm", "aten.convolution"})


def counted(call: Call) -> tuple[Any, int]:
    """The result of a call on shapes, and its multiply-adds; recurrent layers count nothing."""
    if call.entry is not None and call.entry.macs is not None:
        return call.meta_result(), call.entry.macs(call)
    if is_weighted(call.module):
        result = call.meta_result()
        return result, _layer(call, result)
    if not _weighs(call):
        return call.meta_result(), 0
    counter = FlopCounterMode(display=False)
    with counter:
        result = call.execute_on_meta()
    counts = counter.get_flop_counts().get("Global", {})
    return result, sum(n for op, n in counts.items() if str(op) in _LINEAR_OPS) // 2


def _weighs(call: Call) -> bool:
    named = call.name is not None and call.name.startswith(("conv", "linear"))
    given = any(one.kind is Kind.TENSOR for one in call.step.sources)
    return call.module is None and (named or given)


def _layer(call: Call, result: Tensor) -> int:
    """Of a layer whose weight is computed: how it is computed does not count."""
    counted = call.values[0].meta if isinstance(call.module, TRANSPOSED) else result
    dim = counted.ndim - (call.module.weight.ndim - 1)
    return call.module.weight.numel() * counted.numel() // counted.shape[dim]
