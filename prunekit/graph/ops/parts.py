"""Taking tensors apart: splits, slices, picks by index, and writing into parts of them."""

from __future__ import annotations

from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.moves import moved
from prunekit.graph.recording.steps import Step
from prunekit.graph.run import Run
from prunekit.graph.table import operation
from prunekit.graph.values import Value, resize, spread


def parts(run: Run, call: Call) -> Any:
    """Cutting channels into parts unites these, so that their sizes keep their ratio."""
    value = call.values[0]
    dim = call.argument(2, "dim", "axis", default=0) % value.meta.ndim
    if dim not in value.varying:
        return moved(run, call)
    written = call.written(1, "split_size_or_sections", "split_size")
    literal = not _computed(written)
    if literal and (call.name.startswith("split") or isinstance(written, tuple | list)):
        return run.unknown(call, "the sizes of its parts are constants; use chunk")
    sizes = [part.shape[dim] for part in call.on_meta()]
    unite_parts(run, call, value, dim, gcd(*sizes))
    return moved(run, call)


def _computed(written: Any) -> bool:
    sizes = written if isinstance(written, tuple | list) else [written]
    return any(isinstance(size, Step) for size in sizes)


def unite_parts(run: Run, call: Call, value: Value, dim: int, size: int) -> None:
    """Tie channels that stand at the same place of parts of this size."""
    rows = value.along(dim).reshape(-1, size)
    run.unite(rows, rows[:1], call)


def shuffled(run: Run, call: Call) -> Any:
    """Shuffling channels between equal groups keeps the groups equal."""
    value = call.values[0]
    if 1 in value.varying:
        unite_parts(run, call, value, 1, value.meta.shape[1] // call.argument(1, "groups"))
    return moved(run, call)


def taken(run: Run, call: Call) -> Any:
    """Indexing: channels that bounds written as numbers count stay, and steps keep their beat."""
    value, *others = call.values
    if not isinstance(call.args[0], Value):
        return call.op(*call.args)  # an item of a tuple
    if others:
        return _by_tensor(run, call, others)
    for dim, item, written in indexed(call, value.meta.ndim):
        if dim in value.varying and item != slice(None):
            why = _sliced(run, call, value, dim, item, written)
            if why:
                return run.unknown(call, why)
    return moved(run, call)


def _by_tensor(run: Run, call: Call, others: list[Value]) -> Any:
    """Index by one tensor of indices, all else being whole."""
    found = [one for one in indexed(call, call.values[0].meta.ndim) if one[1] != slice(None)]
    if len(found) != 1 or found[0][1] is not others[0] or others[0].meta.ndim != 1:
        return run.unknown(call, "it picks by tensor")
    if None in (call.args[1] if isinstance(call.args[1], tuple) else ()):
        return run.unknown(call, "it picks by tensor")
    return picked(run, call, found[0][0], others[0])


def picked(run: Run, call: Call, dim: int, index: Value) -> Any:
    """Pick along a dimension: channels only by a buffer, which can be numbered anew."""
    value, varying = call.values[0], {*run.originals(call)[0].varying}
    if dim not in varying:
        run.freeze(index.labels, call, None)
        return Value(call.on_meta(), value.labels)
    labels = run.picked(call, value, dim, index) if varying == {dim} else None
    if labels is None or index.meta.is_floating_point() or index.meta.dtype == torch.bool:
        return run.unknown(call, "it picks channels by number")
    meta = resize(value.meta, dim, len(labels))
    return Value(meta, spread(labels, dim, meta.ndim))


def narrowed(run: Run, call: Call) -> Any:
    """A slice that is given by its start and its length."""
    value = call.values[0]
    dim, start, length = (
        call.argument(at, name) for at, name in ((1, "dim"), (2, "start"), (3, "length"))
    )
    dim = dim % value.meta.ndim
    if dim in value.varying:
        if isinstance(start, Value) or _computed([call.written(2), call.written(3)]):
            return run.unknown(call, "it picks channels by number")
        item = slice(start, start + length)
        why = _sliced(run, call, value, dim, item, item)
        if why:
            return run.unknown(call, why)
    return moved(run, call)


def indexed(call: Call, rank: int) -> list[tuple[int, Any, Any]]:
    """The dimension that each item of an index is about, the item, and how it was written."""
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    written = call.step.args[1] if isinstance(call.args[1], tuple) else (call.step.args[1],)
    counted = [i for i, item in enumerate(index) if item is not None and item is not Ellipsis]
    cut = next((i for i, item in enumerate(index) if item is Ellipsis), len(index))
    before, after = [i for i in counted if i < cut], [i for i in counted if i > cut]
    places = [*enumerate(before), *((rank - len(after) + n, i) for n, i in enumerate(after))]
    return [(dim, index[at], written[at]) for dim, at in places]


def _sliced(run: Run, call: Call, value: Value, dim: int, item: Any, written: Any) -> str:
    """Tie or freeze what one item of an index needs; returns why it cannot be followed, if so."""
    if not isinstance(item, slice) or not isinstance(written, slice):
        return "it picks channels by number"
    whole = value.meta.shape[dim]
    bounds = [bound for bound in (written.start, written.stop) if bound not in (None, 0)]
    start, stop, step = item.indices(whole)
    if _computed(bounds) and all(isinstance(bound, Step) for bound in bounds) and step == 1:
        size = gcd(start, stop, whole)
        if size > 0:
            unite_parts(run, call, value, dim, size)
            return ""
    if any(isinstance(bound, Step) for bound in bounds) or step < 1:
        return "it picks channels by number"
    along = value.along(dim)
    if step > 1:
        if (bounds and start >= step) or item.stop is not None or whole % step:
            return "it picks channels by number"
        rows = along.reshape(-1, step)
        run.unite(rows, rows[:, :1], call)
        return ""
    _freeze_counted(run, call, along, item)
    return ""


def _freeze_counted(run: Run, call: Call, along: Tensor, item: slice) -> None:
    """What bounds count from the front or from the back stays, so that they mean the same."""
    bounds = [bound for bound in (item.start, item.stop) if bound]
    front = max([bound for bound in bounds if bound > 0], default=0)
    back = max([-bound for bound in bounds if bound < 0], default=0)
    why = "it counts channels"
    run.freeze(along[:front], call, why)
    if back:
        run.freeze(along[-back:], call, why)
    if item.stop is not None and item.stop >= len(along):
        run.freeze(along, call, why)


def assigned(run: Run, call: Call) -> Any:
    """Item assignment: what is written shares the fate of what it is written over."""
    target, *others = call.values
    written = call.args[2]
    if not isinstance(call.args[0], Value) or len(others) != isinstance(written, Value):
        return run.unknown(call, "it writes by tensor")
    for dim, item, how in indexed(call, target.meta.ndim):
        if item == slice(None) or dim not in _changing(target, written):
            continue
        computed = isinstance(how, slice) and _computed([how.start, how.stop])
        if not computed and (others or _sliced(run, call, target, dim, item, how)):
            return run.unknown(call, "it writes channels by number")
    if others and written.meta.numel() > 1:
        place = target.full()[call.args[1]]
        run.unite(*torch.broadcast_tensors(place, written.labels), call)
    return Value(target.meta, target.labels)


def _changing(target: Value, written: Any) -> set[int]:
    """Dimensions of the target along which labels change, there or in what is written."""
    found = set(target.varying)
    if isinstance(written, Value):
        lead = target.meta.ndim - written.meta.ndim
        found |= {dim + lead for dim in written.varying}
    return found


def selected(run: Run, call: Call) -> Any:
    """Pick by a vector of indices."""
    value, *others = call.values
    if len(others) != 1 or others[0].meta.ndim != 1:
        return run.unknown(call, "it picks by tensor")
    return picked(run, call, call.argument(1, "dim") % value.meta.ndim, others[0])


def unbound(run: Run, call: Call) -> Any:
    """Taking channels apart one by one freezes them."""
    value = call.values[0]
    if call.argument(1, "dim", default=0) % value.meta.ndim in value.varying:
        return run.unknown(call, "it picks channels by number")
    return moved(run, call)


operation(parts, "chunk split split_with_sizes tensor_split", moves=True)
operation(shuffled, "channel_shuffle", nn.ChannelShuffle, moves=True)
operation(taken, "getitem", moves=True)
operation(narrowed, "narrow", moves=True)
operation(assigned, "setitem", moves=True)
operation(selected, "index_select", moves=True)
operation(unbound, "unbind select", moves=True)
