"""Operations that move entries: they are executed on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.results import of_joined
from prunekit.graph.recording.steps import Step
from prunekit.graph.run import Run
from prunekit.graph.table import Rule, operation
from prunekit.graph.values import Value, compress, each, fixed


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
            return run.unknown(call)
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


def rolled(run: Run, call: Call) -> Any:
    """Rolling channels: those that come round the end stay, so that the others keep their order."""
    value = call.values[0]
    shifts, dims = call.argument(1, "shifts"), call.argument(2, "dims")
    if dims is None:
        return moved(run, call) if not value.varying else run.unknown(call)
    shifts, dims = ([one] if isinstance(one, int) else list(one) for one in (shifts, dims))
    for shift, dim in zip(shifts, dims, strict=True):
        dim = dim % value.meta.ndim
        if dim in value.varying:
            width = value.meta.shape[dim]
            round_the_end = slice(width - shift, None) if shift > 0 else slice(0, -shift)
            if abs(shift) >= width or call.name != "roll" or not _literal_shift(call):
                return run.unknown(call, "it shifts channels by a number that is not constant")
            run.freeze(value.along(dim)[round_the_end], call, "they come round the end")
    return moved(run, call)


def _literal_shift(call: Call) -> bool:
    written = call.written(1, "shifts")
    return all(isinstance(one, int) for one in ([written] if isinstance(written, int) else written))


def attribute(run: Run, call: Call) -> Any:
    """Shapes are read off; `x.T` and the like are moved."""
    if call.args[1] in ("T", "mT", "H", "mH"):
        return moved(run, call)
    result = call.on_meta()
    return Value(result, call.values[0].labels) if isinstance(result, Tensor) else result


operation(attribute, "getattr", moves=True)
operation(
    move,
    "flatten unsqueeze permute transpose swapaxes swapdims movedim moveaxis t adjoint ravel",
    nn.Flatten,
    moves=True,
    steady=True,
)
operation(
    move,
    "squeeze flip fliplr flipud rot90 repeat tile repeat_interleave unfold diagonal",
    moves=True,
)
operation(move, "pixel_shuffle pixel_unshuffle", nn.PixelShuffle, nn.PixelUnshuffle, moves=True)
operation(sized(1, "shape", "size"), "view reshape expand", moves=True)
operation(sized(2, "unflattened_size", "sizes"), "unflatten", nn.Unflatten, moves=True)
operation(as_other, "view_as reshape_as", moves=True)
operation(*(joined, "cat concat concatenate"), moves=True, steady=True, joins=True, shape=of_joined)
operation(joined, "stack", moves=True, steady=True)
operation(rolled, "roll", moves=True, alike=True)
