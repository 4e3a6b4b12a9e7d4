"""Rules that most entries of the table of operations share.

A rule gets the replay and the call. It returns the result with labeled tensors in place of tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, align, broadcast_shape, compress, map_only
from prunekit.graph.replay import Replay
from prunekit.graph.table import Rule

ELSEWHERE = "its input holds channels in more than one place"


def elementwise(replay: Replay, call: Call) -> Any:
    """Unite the labels of entries that meet in arithmetic."""
    call = replay.label_parameters(call)
    if call.entry is not None and call.entry.same_shape and len(call.values) == 1:
        return LabeledTensor(call.values[0].meta, call.values[0].labels)
    meta = _result(call)
    if not isinstance(meta, Tensor):
        return meta
    narrowed = align(call.values, meta.ndim)
    full = align(replay.full_values(call), meta.ndim)
    operand = (*full[0], narrowed[0][1])
    for (shape, before), (_, labels) in zip(full[1:], narrowed[1:], strict=True):
        operand = _unite(replay, call, operand, (shape, before, labels))
    return LabeledTensor(meta, compress(operand[2]))


def _result(call: Call) -> Any:
    """Return the result on the meta device, without running it where its shape is known."""
    if call.recorded:
        return call.meta_result()
    first, *others = (value.meta for value in call.values)
    plain = call.entry is not None and call.entry.broadcasts and first.is_floating_point()
    if plain and all(other.dtype == first.dtype for other in others):
        return first.new_empty(broadcast_shape(first.shape, *(m.shape for m in others)))
    return call.meta_result()


Operand = tuple[list[int], Tensor, Tensor]  # shape and labels in the full network, labels now


def _unite(replay: Replay, call: Call, a: Operand, b: Operand) -> Operand:
    """Unite the labels of two operands, or freeze those that cannot be united.

    Broadcasting is decided by the shapes of the full network: an operand that is pruned to one
    channel would otherwise look like one that has a single entry for all channels.
    """
    shape = list(broadcast_shape(a[0], b[0]))
    varying = [d for d in range(len(shape)) if a[1].shape[d] > 1 or b[1].shape[d] > 1]
    a_spans, b_spans = (all(side[0][d] > 1 for d in varying) for side in (a, b))
    if a_spans and b_spans:
        replay.unite(a[2], b[2], call)
        return (shape, _broadcast(a[1], b[1]), _broadcast(a[2], b[2]))
    for spans, kept, other in ((a_spans, a, b), (b_spans, b, a)):
        if spans and other[1].numel() == 1:  # one entry for all channels is always kept
            replay.freeze(other[2], call, None)
            return (shape, kept[1], kept[2])
    for side in (a, b):
        replay.freeze(side[2], call, "it combines channels with other channels")
    return (shape, torch.zeros_like(a[1]), torch.zeros_like(a[2]))


def _broadcast(a: Tensor, b: Tensor) -> Tensor:
    return a.expand(broadcast_shape(a.shape, b.shape))


def spatial(rank: int | None) -> Rule:
    """Return a rule for operations on every channel alone, over the last `rank` dimensions."""

    def rule(replay: Replay, call: Call) -> Any:
        value = call.values[0]
        last = rank if rank is not None else value.meta.ndim - 2
        return mix_dims(replay, call, range(value.meta.ndim - last, value.meta.ndim))

    return rule


def along_dim(default: int | None, position: int = 1) -> Rule:
    """Return a rule for operations that mix the entries of one dimension.

    The dimension is the argument at this position.
    """

    def rule(replay: Replay, call: Call) -> Any:
        dim = call.argument(position, "dim", default=default)
        if dim is None:
            return replay.freeze_inputs(call)
        return mix_dims(replay, call, [dim % call.values[0].meta.ndim])

    return rule


def mix_dims(replay: Replay, call: Call, dims: Iterable[int]) -> Any:
    """Pass operations that mix the entries of these dimensions, which must not hold channels."""
    value, *others = call.values
    if set(dims) & set(value.varying) or any(
        other.varying and not other.source for other in others
    ):
        return replay.freeze_inputs(call, "it mixes channels")
    for other in others:
        replay.freeze(other.labels, call, None)
    if call.entry is not None and call.entry.same_shape:
        return LabeledTensor(value.meta, value.labels)
    return map_only(call.meta_result(), lambda meta: LabeledTensor(meta, value.labels), Tensor)


def reduction(position: int = 1) -> Rule:
    """Return a rule for sums and the like over the dimensions in the argument at this position."""

    def rule(replay: Replay, call: Call) -> Any:
        return _reduced(replay, call, call.argument(position, "dim", "axis"))

    return rule


def _reduced(replay: Replay, call: Call, dims: Any) -> Any:
    if len(call.values) > 1:
        return elementwise(replay, call)
    value = call.values[0]
    dims = None if isinstance(dims, bool) else dims  # std(x, True): not a dimension
    dims = range(value.meta.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = {dim % value.meta.ndim for dim in dims}
    if dims & set(value.varying):
        return replay.freeze_inputs(call, "it mixes channels")
    sizes = [size for dim, size in enumerate(value.labels.shape) if dim not in dims]
    return map_only(
        call.meta_result(),
        lambda meta: LabeledTensor(
            meta, value.labels if meta.ndim == value.meta.ndim else value.labels.reshape(sizes)
        ),
        Tensor,
    )


def like_first(replay: Replay, call: Call) -> Any:
    """Return the labels of the first tensor; other tensors only lend their type or device."""
    return LabeledTensor(call.meta_result(), call.values[0].labels)


def query(replay: Replay, call: Call) -> Any:
    """Return a size, type or device of a tensor."""
    return call.meta_result()


def ignore(replay: Replay, call: Call) -> None:
    """Ignore assertions, which hold for the example that the user gave."""


def not_followed(replay: Replay, call: Call) -> Any:
    """Freeze everything that goes into the operation."""
    return replay.freeze_inputs(call)


def varies_elsewhere(replay: Replay, call: Call, dim: int) -> bool:
    """Return whether the first value of the full network has channels in another dimension."""
    return bool(set(replay.full_values(call)[0].varying) - {dim})
