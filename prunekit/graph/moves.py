"""How labels pass through operations that move entries: the operation is executed on the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.rules import Rule, table, unknown
from prunekit.graph.steps import Step
from prunekit.graph.values import Value, compress, each, fixed

if TYPE_CHECKING:
    from prunekit.graph.labels import Run


def move(run: Run, call: Call) -> Any:
    """Operations that only move entries are executed on the labels themselves."""
    return moved(run, call)


def moved(
    run: Run,
    call: Call,
    constant: Iterable[int] = (),
    pick: Callable[[Value], Tensor] = Value.full,
    op: Callable[..., Any] | None = None,
) -> Any:
    """Execute a moving operation; along `constant` dimensions of the result nothing may vanish."""
    result = call.on_meta()
    labels: list[Tensor] = []
    each(call.on(pick, op), labels.append, Tensor)
    queue = iter(labels)
    return each(
        result,
        lambda meta: _settle(run, call, Value(meta, compress(next(queue))), constant),
        Tensor,
    )


def _settle(run: Run, call: Call, value: Value, constant: Iterable[int]) -> Value:
    """Leave at most one dimension along which entries can vanish: what remains is a box."""
    varying = value.varying
    free = [dim for dim in varying if dim not in set(constant)]
    if not varying:
        return value
    if not free:
        run.freeze(value.labels, call, "its sizes are constants; take them from x.shape or use -1")
        return fixed(value.meta)
    labels = value.labels
    for dim in varying:
        if dim != free[0]:
            run.unite(labels, labels.narrow(dim, 0, 1), call)
            labels = labels.narrow(dim, 0, 1)
    return Value(value.meta, compress(labels))


def sized(first: int, *names: str) -> Rule:
    """A rule for view and the like: the sizes written as numbers cannot shrink."""

    def rule(run: Run, call: Call) -> Any:
        sizes = call.written(first, *names)
        if call.module is None and isinstance(sizes, int | Step):
            sizes = call.step.args[first:]
        if not isinstance(sizes, tuple | list):
            sizes = ()
        lead = 0
        if "unflattened_size" in names:
            lead = call.argument(1, "dim") % call.values[0].meta.ndim
        constant = [lead + dim for dim, size in enumerate(sizes) if _literal(size)]
        op = Tensor.reshape if call.name == "view" else None
        if call.name == "view" and any(isinstance(size, torch.dtype) for size in call.args):
            return unknown(run, call)
        return moved(run, call, constant, op=op)

    return rule


def as_other(run: Run, call: Call) -> Any:
    """Take the shape of another tensor."""
    return moved(run, call, op=Tensor.reshape_as)


def _literal(size: Any) -> bool:
    return isinstance(size, int) and size != -1


def joined(run: Run, call: Call) -> Any:
    """Concatenating and stacking: only the joined dimension can hold different channels."""
    result = call.on_meta()
    dim = call.argument(1, "dim", "axis", default=0) % result.ndim
    values = call.values
    stack = call.name == "stack"
    shrunk = [max(value.labels.shape[d] for value in values) for d in range(values[0].meta.ndim)]

    def pick(value: Value) -> Tensor:
        shape = [
            value.meta.shape[d] if d == dim and not stack else size for d, size in enumerate(shrunk)
        ]
        return value.labels.expand(shape)

    varying = {d for value in values for d in value.varying}
    others = varying if stack else varying - {dim}
    return moved(run, call, [dim] if others else [], pick)


def parts(run: Run, call: Call) -> Any:
    """Cutting channels into equal parts unites the parts, so that they stay equal."""
    value = call.values[0]
    rank = value.meta.ndim
    dim = call.argument(2, "dim", "axis", default=0) % rank
    if dim not in value.varying:
        return moved(run, call)
    written = call.written(1, "split_size_or_sections", "split_size")
    literal = not _computed(written)
    if literal and (call.name.startswith("split") or isinstance(written, tuple | list)):
        return unknown(run, call, "the sizes of its parts are constants; use chunk")
    sizes = {part.shape[dim] for part in call.on_meta()}
    if len(sizes) > 1:
        return unknown(run, call, "its parts differ in size")
    _unite_parts(run, call, value, dim, sizes.pop())
    return moved(run, call)


def _computed(written: Any) -> bool:
    sizes = written if isinstance(written, tuple | list) else [written]
    return all(isinstance(size, Step) for size in sizes)


def _unite_parts(run: Run, call: Call, value: Value, dim: int, size: int) -> None:
    rows = value.along(dim).reshape(-1, size)
    run.unite(rows, rows[:1], call)


def shuffle(run: Run, call: Call) -> Any:
    """Shuffling channels between equal groups keeps the groups equal."""
    value = call.values[0]
    if 1 in value.varying:
        size = value.meta.shape[1] // call.argument(1, "groups")
        _unite_parts(run, call, value, 1, size)
    return moved(run, call)


def taken(run: Run, call: Call) -> Any:
    """Indexing along channels freezes them, unless it cuts out one of several equal parts."""
    value, *others = call.values
    if not isinstance(call.args[0], Value):
        return call.op(*call.args)  # an item of a tuple
    if others:
        return unknown(run, call, "it picks by tensor")
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    written = call.step.args[1] if isinstance(call.args[1], tuple) else (call.step.args[1],)
    for dim, position in _sources(index, value.meta.ndim):
        if dim not in value.varying or index[position] == slice(None):
            continue
        size = _part(index[position], written[position], value.meta.shape[dim])
        if size is None:
            return unknown(run, call, "it picks channels by number")
        _unite_parts(run, call, value, dim, size)
    return moved(run, call)


def _sources(index: tuple[Any, ...], rank: int) -> list[tuple[int, int]]:
    """Which dimension each item of an index is about."""
    counted = [i for i, item in enumerate(index) if item is not None and item is not Ellipsis]
    cut = next((i for i, item in enumerate(index) if item is Ellipsis), len(index))
    before = [i for i in counted if i < cut]
    after = [i for i in counted if i > cut]
    return [*enumerate(before), *((rank - len(after) + n, i) for n, i in enumerate(after))]


def _part(item: Any, written: Any, whole: int) -> int | None:
    """The size of the part that a slice with computed bounds cuts out of equal ones."""
    if not isinstance(item, slice) or not isinstance(written, slice) or item.step not in (None, 1):
        return None
    bounds = [bound for bound in (written.start, written.stop) if bound not in (None, 0)]
    if not bounds or not all(isinstance(bound, Step) for bound in bounds):
        return None
    start, stop, _ = item.indices(whole)
    size = stop - start
    return size if size > 0 and whole % size == 0 and start % size == 0 else None


def padded(run: Run, call: Call) -> Any:
    """Padding along channels adds entries that stay; elsewhere it belongs to its channel."""
    value = call.values[0]
    amounts = list(call.argument(1, "pad", "padding"))
    mode = call.argument(2, "mode", default="constant")
    labels = value.labels
    for back in range(len(amounts) // 2):
        dim = value.meta.ndim - 1 - back
        channels = dim in value.varying or (dim == 1 and value.meta.shape[dim] == 1)
        if channels and any(amounts[2 * back : 2 * back + 2]):
            if mode != "constant":
                return unknown(run, call, "it pads channels with copies of others")
            sides = [0, 0] * back + amounts[2 * back : 2 * back + 2]
            labels = torch.nn.functional.pad(labels, sides)
    return Value(call.on_meta(), compress(labels))


def unbound(run: Run, call: Call) -> Any:
    """Taking channels apart one by one freezes them."""
    value = call.values[0]
    if call.argument(1, "dim", default=0) % value.meta.ndim in value.varying:
        return unknown(run, call, "it picks channels by number")
    return moved(run, call)


def attribute(run: Run, call: Call) -> Any:
    """Shapes, types and devices are read off; `x.T` and the like are moved."""
    if call.args[1] in ("T", "mT", "H", "mH"):
        return moved(run, call)
    result = call.on_meta()
    return Value(result, call.values[0].labels) if isinstance(result, Tensor) else result


# moves that do the same to any number of channels
STEADY = frozenset(
    {"flatten", "ravel", "unsqueeze", "cat", "concat", "concatenate", "stack", "t"}
    | {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis"}
)

MOVING: dict[str, Rule] = {
    **table(attribute, "getattr"),
    **table(padded, "pad"),
    **table(unbound, "unbind"),
    **table(
        move, "flatten permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze"
    ),
    **table(move, "flip fliplr flipud roll rot90 repeat tile repeat_interleave ravel"),
    **table(move, "pixel_shuffle pixel_unshuffle"),
    **table(sized(1, "shape", "size"), "view reshape expand"),
    **table(sized(2, "unflattened_size", "sizes"), "unflatten"),
    **table(as_other, "view_as reshape_as"),
    **table(joined, "cat concat concatenate stack"),
    **table(parts, "chunk split split_with_sizes tensor_split"),
    **table(shuffle, "channel_shuffle"),
    **table(taken, "getitem"),
}
