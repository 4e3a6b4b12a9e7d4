"""How labels pass through operations that compute: the few rules that most entries share.

A rule gets the pass over the recording and the call, and returns the result, in which values stand
for tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.run import Replay
from prunekit.graph.table import Rule
from prunekit.graph.values import LabeledTensor, align, compress, map_only

ELSEWHERE = "its input holds channels in more than one place"


def elementwise(replay: Replay, call: Call) -> Any:
    """Entries that meet in arithmetic share their fate."""
    call = replay.label_parameters(call)
    if call.entry is not None and call.entry.same_shape and len(call.values) == 1:
        return LabeledTensor(call.values[0].meta, call.values[0].labels)
    meta = _result(call)
    if not isinstance(meta, Tensor):
        return meta
    now = align(call.values, meta.ndim)
    full = align(replay.full_values(call), meta.ndim)
    result = (*full[0], now[0][1])
    for (shape, before), (_, labels) in zip(full[1:], now[1:], strict=True):
        result = _unite(replay, call, result, (shape, before, labels))
    return LabeledTensor(meta, compress(result[2]))


def _result(call: Call) -> Any:
    """The result's shape and type; known at once for tensors that are alike."""
    if call.recorded:
        return call.meta_result()
    first, *others = (value.meta for value in call.values)
    plain = call.entry is not None and call.entry.broadcasts and first.is_floating_point()
    if plain and all(other.dtype == first.dtype for other in others):
        return first.new_empty(torch.broadcast_shapes(first.shape, *(m.shape for m in others)))
    return call.meta_result()


Operand = tuple[list[int], Tensor, Tensor]  # shape and labels in the full network, labels now


def _unite(replay: Replay, call: Call, a: Operand, b: Operand) -> Operand:
    """Broadcasting is judged by the full network: a last channel left does not become a gate."""
    shape = list(torch.broadcast_shapes(a[0], b[0]))
    varying = [d for d in range(len(shape)) if a[1].shape[d] > 1 or b[1].shape[d] > 1]
    a_spans, b_spans = (all(side[0][d] > 1 for d in varying) for side in (a, b))
    if a_spans and b_spans:
        replay.unite(a[2], b[2], call)
        return (shape, *(torch.broadcast_tensors(a[i], b[i])[0] for i in (1, 2)))
    for spans, one, other in ((a_spans, a, b), (b_spans, b, a)):
        if spans and other[1].numel() == 1:  # one entry for all channels stays with any of them
            replay.freeze(other[2], call, None)
            return (shape, one[1], one[2])
    for side in (a, b):
        replay.freeze(side[2], call, "it combines channels with other channels")
    return (shape, *(torch.zeros_like(a[i]) for i in (1, 2)))


def spatial(rank: int | None) -> Rule:
    """A rule for operations that work on every channel alone, over the last `rank` dimensions."""

    def rule(replay: Replay, call: Call) -> Any:
        value = call.values[0]
        last = rank if rank is not None else value.meta.ndim - 2
        return mix_dims(replay, call, range(value.meta.ndim - last, value.meta.ndim))

    return rule


def along_dim(default: int | None, position: int = 1) -> Rule:
    """A rule for operations that mix the entries of one dimension, given at this position."""

    def rule(replay: Replay, call: Call) -> Any:
        dim = call.argument(position, "dim", default=default)
        if dim is None:
            return replay.freeze_inputs(call)
        return mix_dims(replay, call, [dim % call.values[0].meta.ndim])

    return rule


def mix_dims(replay: Replay, call: Call, dims: Iterable[int]) -> Any:
    """Pass what mixes the entries of these dimensions, which must not hold channels."""
    value, *others = call.values
    if set(dims) & set(value.varying) or any(o.varying and not o.source for o in others):
        return replay.freeze_inputs(call, "it mixes channels")
    for other in others:
        replay.freeze(other.labels, call, None)
    if call.entry is not None and call.entry.same_shape:
        return LabeledTensor(value.meta, value.labels)
    return map_only(call.meta_result(), lambda meta: LabeledTensor(meta, value.labels), Tensor)


def reduction(position: int = 1) -> Rule:
    """A rule for sums and the like over dimensions, given at this position."""

    def rule(replay: Replay, call: Call) -> Any:
        return _reduced(replay, call, call.argument(position, "dim", "axis"))

    return rule


def _reduced(replay: Replay, call: Call, asked: Any) -> Any:
    if len(call.values) > 1:
        return elementwise(replay, call)
    value = call.values[0]
    asked = None if isinstance(asked, bool) else asked  # std(x, True): not a dimension
    dims = range(value.meta.ndim) if asked is None else [asked] if isinstance(asked, int) else asked
    dims = {dim % value.meta.ndim for dim in dims}
    if dims & set(value.varying):
        return replay.freeze_inputs(call, "it mixes channels")
    left = [size for dim, size in enumerate(value.labels.shape) if dim not in dims]
    return map_only(
        call.meta_result(),
        lambda meta: LabeledTensor(
            meta, value.labels if meta.ndim == value.meta.ndim else value.labels.reshape(left)
        ),
        Tensor,
    )


def like_first(replay: Replay, call: Call) -> Any:
    """Only the first tensor's channels matter; others lend their type or device."""
    return LabeledTensor(call.meta_result(), call.values[0].labels)


def query(replay: Replay, call: Call) -> Any:
    """Ask a tensor for its size, type or device."""
    return call.meta_result()


def ignore(replay: Replay, call: Call) -> None:
    """Assertions hold for the example that the user gave."""


def not_followed(replay: Replay, call: Call) -> Any:
    """Nothing that meets it can vanish."""
    return replay.freeze_inputs(call)


def varies_elsewhere(replay: Replay, call: Call, dim: int) -> bool:
    """Whether the first value has channels in another dimension, before anything was frozen."""
    return bool(set(replay.full_values(call)[0].varying) - {dim})
