"""Operations that take tensors apart: splits, slices, picks by index, and writes into parts."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, resize, spread
from prunekit.graph.ops.reshape import move_labels
from prunekit.graph.recording.steps import Step
from prunekit.graph.replay import Replay
from prunekit.graph.table import register_operation


def split(replay: Replay, call: Call) -> Any:
    """Unite the channels of equal parts, so that the ratio of their sizes is kept."""
    value = call.values[0]
    dim = call.argument(2, "dim", "axis", default=0) % value.meta.ndim
    if dim not in value.varying:
        return move_labels(replay, call)
    sizes = call.recorded_argument(1, "split_size_or_sections", "split_size")
    constant = not _computed(sizes)
    if constant and (call.name.startswith("split") or isinstance(sizes, tuple | list)):
        return replay.freeze_inputs(call, "the sizes of its parts are constants; use chunk")
    lengths = [part.shape[dim] for part in call.meta_result()]
    unite_parts(replay, call, value, dim, gcd(*lengths))
    return move_labels(replay, call)


def _computed(sizes: Any) -> bool:
    """Return whether any of these sizes was computed from other sizes."""
    sizes = sizes if isinstance(sizes, tuple | list) else [sizes]
    return any(isinstance(item, Step) for item in sizes)


def unite_parts(replay: Replay, call: Call, value: LabeledTensor, dim: int, size: int) -> None:
    """Unite the channels at the same position in parts of this size."""
    parts = value.along(dim).reshape(-1, size)
    replay.unite(parts, parts[:1], call)


def channel_shuffle(replay: Replay, call: Call) -> Any:
    """Unite the channels of the groups between which a shuffle exchanges them."""
    value = call.values[0]
    if 1 in value.varying:
        unite_parts(replay, call, value, 1, value.meta.shape[1] // call.argument(1, "groups"))
    return move_labels(replay, call)


def getitem(replay: Replay, call: Call) -> Any:
    """Index a tensor; a slice along channels unites or freezes some of them."""
    value, *index = call.values
    if not isinstance(call.args[0], LabeledTensor):
        return call.op(*call.args)  # an item of a tuple
    if index:
        return _by_tensor(replay, call, index)
    for dim, item, written in index_items(call, value.meta.ndim):
        if dim in value.varying and item != slice(None):
            reason = _sliced(replay, call, value, dim, item, written)
            if reason:
                return replay.freeze_inputs(call, reason)
    return move_labels(replay, call)


def _by_tensor(replay: Replay, call: Call, others: list[LabeledTensor]) -> Any:
    """Index by a single tensor of indices, where all other dimensions are kept whole."""
    picks = [item for item in index_items(call, call.values[0].meta.ndim) if item[1] != slice(None)]
    if len(picks) != 1 or picks[0][1] is not others[0] or others[0].meta.ndim != 1:
        return replay.freeze_inputs(call, "it picks by tensor")
    if None in (call.args[1] if isinstance(call.args[1], tuple) else ()):
        return replay.freeze_inputs(call, "it picks by tensor")
    return pick(replay, call, picks[0][0], others[0])


def pick(replay: Replay, call: Call, dim: int, index: LabeledTensor) -> Any:
    """Pick along a dimension; channels only by a buffer, whose indices can be renumbered."""
    value, varying = call.values[0], {*replay.full_values(call)[0].varying}
    if dim not in varying:
        replay.freeze(index.labels, call, None)
        return LabeledTensor(call.meta_result(), value.labels)
    labels = replay.picked_labels(call, value, dim, index) if varying == {dim} else None
    if labels is None or index.meta.is_floating_point() or index.meta.dtype == torch.bool:
        return replay.freeze_inputs(call, "it picks channels by number")
    meta = resize(value.meta, dim, len(labels))
    return LabeledTensor(meta, spread(labels, dim, meta.ndim))


def narrow_slice(replay: Replay, call: Call) -> Any:
    """Follow a slice that is given by its start and its length."""
    value = call.values[0]
    dim, start, length = (
        call.argument(at, name) for at, name in ((1, "dim"), (2, "start"), (3, "length"))
    )
    dim = dim % value.meta.ndim
    if dim in value.varying:
        if isinstance(start, LabeledTensor) or _computed(
            [call.recorded_argument(2), call.recorded_argument(3)]
        ):
            return replay.freeze_inputs(call, "it picks channels by number")
        item = slice(start, start + length)
        reason = _sliced(replay, call, value, dim, item, item)
        if reason:
            return replay.freeze_inputs(call, reason)
    return move_labels(replay, call)


def index_items(call: Call, rank: int) -> list[tuple[int, Any, Any]]:
    """Return for each item of an index its dimension, the item, and the item as recorded."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    written = call.step.args[1] if isinstance(call.args[1], tuple) else (call.step.args[1],)
    counted = [i for i, item in enumerate(index) if item is not None and item is not Ellipsis]
    ellipsis = next((i for i, item in enumerate(index) if item is Ellipsis), len(index))
    before, after = [i for i in counted if i < ellipsis], [i for i in counted if i > ellipsis]
    places = [*enumerate(before), *((rank - len(after) + n, i) for n, i in enumerate(after))]
    return [(dim, index[at], written[at]) for dim, at in places]


def _sliced(
    replay: Replay, call: Call, value: LabeledTensor, dim: int, item: Any, written: Any
) -> str:
    """Unite or freeze what a slice of channels needs.

    Return the reason if it cannot be followed, and an empty string otherwise.
    """
    if not isinstance(item, slice) or not isinstance(written, slice):
        return "it picks channels by number"
    width = value.meta.shape[dim]
    bounds = [bound for bound in (written.start, written.stop) if bound not in (None, 0)]
    start, stop, step = item.indices(width)
    if _computed(bounds) and all(isinstance(bound, Step) for bound in bounds) and step == 1:
        size = gcd(start, stop, width)
        if size > 0:
            unite_parts(replay, call, value, dim, size)
            return ""
    if any(isinstance(bound, Step) for bound in bounds) or step < 1:
        return "it picks channels by number"
    along = value.along(dim)
    if step > 1:
        if (bounds and start >= step) or item.stop is not None or width % step:
            return "it picks channels by number"
        parts = along.reshape(-1, step)
        replay.unite(parts, parts[:, :1], call)
        return ""
    _freeze_counted(replay, call, along, item)
    return ""


def _freeze_counted(replay: Replay, call: Call, along: Tensor, item: slice) -> None:
    """Freeze the channels that constant bounds count, from the front or from the back."""
    bounds = [bound for bound in (item.start, item.stop) if bound]
    front = max([bound for bound in bounds if bound > 0], default=0)
    back = max([-bound for bound in bounds if bound < 0], default=0)
    reason = "it counts channels"
    replay.freeze(along[:front], call, reason)
    if back:
        replay.freeze(along[-back:], call, reason)
    if item.stop is not None and item.stop >= len(along):
        replay.freeze(along, call, reason)


def setitem(replay: Replay, call: Call) -> Any:
    """Unite what is written with the labels it is written over."""
    target, *others = call.values
    written = call.args[2]
    if not isinstance(call.args[0], LabeledTensor) or len(others) != isinstance(
        written, LabeledTensor
    ):
        return replay.freeze_inputs(call, "it writes by tensor")
    for dim, item, recorded in index_items(call, target.meta.ndim):
        if item == slice(None) or dim not in _changing(target, written):
            continue
        computed = isinstance(recorded, slice) and _computed([recorded.start, recorded.stop])
        if not computed and (others or _sliced(replay, call, target, dim, item, recorded)):
            return replay.freeze_inputs(call, "it writes channels by number")
    if others and written.meta.numel() > 1:
        region = target.full()[call.args[1]]
        replay.unite(region, written.labels, call)
    return LabeledTensor(target.meta, target.labels)


def _changing(target: LabeledTensor, written: Any) -> set[int]:
    """Return the dimensions along which labels change, in the target or in what is written."""
    dims = set(target.varying)
    if isinstance(written, LabeledTensor):
        lead = target.meta.ndim - written.meta.ndim
        dims |= {dim + lead for dim in written.varying}
    return dims


def index_select(replay: Replay, call: Call) -> Any:
    """Pick by a vector of indices."""
    value, *others = call.values
    if len(others) != 1 or others[0].meta.ndim != 1:
        return replay.freeze_inputs(call, "it picks by tensor")
    return pick(replay, call, call.argument(1, "dim") % value.meta.ndim, others[0])


def unbind(replay: Replay, call: Call) -> Any:
    """Freeze channels that are taken apart one by one."""
    value = call.values[0]
    if call.argument(1, "dim", default=0) % value.meta.ndim in value.varying:
        return replay.freeze_inputs(call, "it picks channels by number")
    return move_labels(replay, call)


register_operation(split, "chunk split split_with_sizes tensor_split", moves=True)
register_operation(channel_shuffle, "channel_shuffle", nn.ChannelShuffle, moves=True)
register_operation(getitem, "getitem", moves=True)
register_operation(narrow_slice, "narrow", moves=True)
register_operation(setitem, "setitem", moves=True)
register_operation(index_select, "index_select", moves=True)
register_operation(unbind, "unbind select", moves=True)
