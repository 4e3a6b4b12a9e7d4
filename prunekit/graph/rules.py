"""How labels pass through operations: a table from names in torch to a handful of rules.

A rule gets the run and the call and returns the result, in which values stand for tensors.
Whatever is in no table is unknown, and freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.values import Value, aligned, compress, each, fixed

if TYPE_CHECKING:
    from prunekit.graph.labels import Run

Rule = Callable[["Run", Call], Any]


def unknown(run: Run, call: Call, why: str = "it is not known what it does to channels") -> Any:
    """Freeze everything that goes in; nothing that comes out can vanish."""
    for value in call.values:
        run.freeze(value.labels, call, why)
    return each(call.on_meta(), fixed, Tensor)


def pointwise(run: Run, call: Call) -> Any:
    """Entries that meet in arithmetic share their fate."""
    meta = call.on_meta()
    if not isinstance(meta, Tensor):
        return meta
    now = aligned(call.values, meta.ndim)
    full = aligned(run.originals(call), meta.ndim)
    result = (*full[0], now[0][1])
    for (shape, before), (_, labels) in zip(full[1:], now[1:], strict=True):
        result = _unite(run, call, result, (shape, before, labels))
    return Value(meta, compress(result[2]))


Operand = tuple[list[int], Tensor, Tensor]  # shape and labels in the full network, labels now


def _unite(run: Run, call: Call, a: Operand, b: Operand) -> Operand:
    """Broadcasting is judged by the full network: a last channel left does not become a gate."""
    shape = list(torch.broadcast_shapes(a[0], b[0]))
    varying = [d for d in range(len(shape)) if a[1].shape[d] > 1 or b[1].shape[d] > 1]
    a_spans, b_spans = (all(side[0][d] > 1 for d in varying) for side in (a, b))
    if a_spans and b_spans:
        run.unite(a[2], b[2], call)
        return (shape, *(torch.broadcast_tensors(a[i], b[i])[0] for i in (1, 2)))
    for spans, one, other in ((a_spans, a, b), (b_spans, b, a)):
        if spans and other[1].numel() == 1:  # one entry for all channels stays with any of them
            run.freeze(other[2], call, None)
            return (shape, one[1], one[2])
    for side in (a, b):
        run.freeze(side[2], call, "it combines channels with other channels")
    return (shape, *(torch.zeros_like(a[i]) for i in (1, 2)))


def spatial(rank: int | None) -> Rule:
    """A rule for operations that work on every channel alone, over the last `rank` dimensions."""

    def rule(run: Run, call: Call) -> Any:
        value = call.values[0]
        last = rank if rank is not None else value.meta.ndim - 2
        return _within(run, call, range(value.meta.ndim - last, value.meta.ndim))

    return rule


def normalise(default: int | None) -> Rule:
    """A rule for operations that mix the entries of one dimension and keep the shape."""

    def rule(run: Run, call: Call) -> Any:
        dim = call.argument(1 if call.name != "normalize" else 2, "dim", default=default)
        return (
            _within(run, call, [dim % call.values[0].meta.ndim])
            if dim is not None
            else unknown(run, call)
        )

    return rule


def layer_norm(run: Run, call: Call) -> Any:
    """Mix the last dimensions, as many as there are normalised sizes."""
    rank = call.values[0].meta.ndim
    return _within(run, call, range(rank - len(call.argument(1, "normalized_shape")), rank))


def _within(run: Run, call: Call, dims: Iterable[int]) -> Any:
    value, *others = call.values
    if set(dims) & set(value.varying) or any(other.varying for other in others):
        return unknown(run, call, "it mixes channels")
    for other in others:
        run.freeze(other.labels, call, None)
    return each(call.on_meta(), lambda meta: Value(meta, value.labels), Tensor)


def reduce(run: Run, call: Call) -> Any:
    """Sums and the like over dimensions that hold no channels leave the channels alone."""
    if len(call.values) > 1:
        return pointwise(run, call)
    value = call.values[0]
    asked = call.argument(2 if call.name == "norm" else 1, "dim", "axis")
    asked = None if isinstance(asked, bool) else asked  # std(x, True): not a dimension
    dims = range(value.meta.ndim) if asked is None else [asked] if isinstance(asked, int) else asked
    dims = {dim % value.meta.ndim for dim in dims}
    if dims & set(value.varying):
        return unknown(run, call, "it mixes channels")
    left = [size for dim, size in enumerate(value.labels.shape) if dim not in dims]
    return each(
        call.on_meta(),
        lambda meta: Value(
            meta, value.labels if meta.ndim == value.meta.ndim else value.labels.reshape(left)
        ),
        Tensor,
    )


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
        if call.module is None and isinstance(sizes, int | torch.fx.Node):
            sizes = call.node.args[first:]
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
    return all(isinstance(size, torch.fx.Node) for size in sizes)


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
    written = call.node.args[1] if isinstance(call.args[1], tuple) else (call.node.args[1],)
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
    if not bounds or not all(isinstance(bound, torch.fx.Node) for bound in bounds):
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


def like(run: Run, call: Call) -> Any:
    """Only the first tensor's channels matter; others lend their type or device."""
    return Value(call.on_meta(), call.values[0].labels)


def attribute(run: Run, call: Call) -> Any:
    """Shapes, types and devices are read off; `x.T` and the like are moved."""
    name = call.args[1]
    if name in ("T", "mT", "H", "mH"):
        return moved(run, call)
    result = call.on_meta()
    return Value(result, call.values[0].labels) if isinstance(result, Tensor) else result


def question(run: Run, call: Call) -> Any:
    """Ask a tensor for its size, type or device."""
    return call.on_meta()


def ignored(run: Run, call: Call) -> None:
    """Assertions hold for the example that the user gave."""


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


STILL: dict[str, Rule] = {
    **_table(
        pointwise,
        "add sub subtract mul multiply div divide truediv true_divide floordiv floor_divide mod "
        "remainder fmod pow neg pos negative abs absolute exp exp2 expm1 log log2 log10 log1p "
        "sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh cosh tanh erf erfc sign "
        "round floor ceil trunc frac clamp clip clamp_min clamp_max relu relu6 leaky_relu elu "
        "selu celu gelu silu mish sigmoid logsigmoid hardtanh hardsigmoid hardswish hardshrink "
        "softshrink softplus softsign tanhshrink threshold rrelu dropout dropout1d dropout2d "
        "dropout3d alpha_dropout feature_dropout feature_alpha_dropout detach clone contiguous "
        "float half double bfloat16 type eq ne lt le gt ge not logical_and logical_or "
        "logical_not logical_xor and or xor where masked_fill maximum minimum fmax fmin lerp "
        "addcmul addcdiv isnan isinf isfinite nan_to_num expand_as requires_grad "
        "stochastic_depth",
    ),
    **_table(like, "to type_as zeros_like ones_like"),
    **_table(unbound, "unbind"),
    **_table(
        reduce, "mean sum amax amin prod std var logsumexp norm max min argmax argmin any all"
    ),
    **_table(normalise(None), "softmax log_softmax softmin cumsum cumprod"),
    **_table(normalise(-1), "glu"),
    **_table(normalise(1), "normalize"),
    **_table(layer_norm, "layer_norm rms_norm"),
    **_table(padded, "pad"),
    **_table(attribute, "getattr"),
    **_table(question, "size dim numel nelement ndimension is_floating_point stride get_device"),
    **_table(ignored, "_assert"),
    **_table(spatial(None), "interpolate upsample"),
    **{
        f"{kind}_pool{rank}d": spatial(rank)
        for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
        for rank in (1, 2, 3)
    },
}

MOVING: dict[str, Rule] = {
    **_table(
        move, "flatten permute transpose swapaxes swapdims movedim moveaxis t squeeze unsqueeze"
    ),
    **_table(move, "flip fliplr flipud roll rot90 repeat tile repeat_interleave ravel"),
    **_table(move, "pixel_shuffle pixel_unshuffle"),
    **_table(sized(1, "shape", "size"), "view reshape expand"),
    **_table(sized(2, "unflattened_size", "sizes"), "unflatten"),
    **_table(joined, "cat concat concatenate stack"),
    **_table(parts, "chunk split split_with_sizes tensor_split"),
    **_table(shuffle, "channel_shuffle"),
    **_table(taken, "getitem"),
}

RULES: dict[str, Rule] = {**STILL, **MOVING}
