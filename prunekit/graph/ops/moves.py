"""Operations that move entries: they are executed on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.results import cat_shape
from prunekit.graph.recording.steps import Step
from prunekit.graph.run import Replay
from prunekit.graph.table import Rule, register_operation
from prunekit.graph.values import LabeledTensor, compress, frozen_tensor, map_only


def move(replay: Replay, call: Call) -> Any:
    """Operations that only move entries are executed on the labels themselves."""
    return move_labels(replay, call)


def move_labels(
    replay: Replay,
    call: Call,
    constant: Iterable[int] = (),
    pick: Callable[[LabeledTensor], Tensor] = LabeledTensor.full,
    op: Callable[..., Any] | None = None,
) -> Any:
    """Execute a moving operation; along `constant` dimensions of the result nothing may vanish."""
    result = call.meta_result()
    labels: list[Tensor] = []
    map_only(call.execute(pick, op), labels.append, Tensor)
    queue = iter(labels)
    return map_only(
        result,
        lambda meta: _settle(replay, call, LabeledTensor(meta, compress(next(queue))), constant),
        Tensor,
    )


def _settle(
    replay: Replay, call: Call, value: LabeledTensor, constant: Iterable[int]
) -> LabeledTensor:
    """Leave at most one dimension along which entries can vanish: what remains is a box."""
    varying = value.varying
    free = [dim for dim in varying if dim not in set(constant)]
    if not varying:
        return value
    if not free:
        replay.freeze(
            value.labels, call, "its sizes are constants; take them from x.shape or use -1"
        )
        return frozen_tensor(value.meta)
    labels = value.labels
    for dim in varying:
        if dim != free[0]:
            replay.unite(labels, labels.narrow(dim, 0, 1), call)
            labels = labels.narrow(dim, 0, 1)
    return LabeledTensor(value.meta, compress(labels))


def reshape_to(first: int, *names: str) -> Rule:
    """A rule for view and the like: the sizes written as numbers cannot shrink."""

    def rule(replay: Replay, call: Call) -> Any:
        sizes = call.recorded_argument(first, *names)
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
            return replay.freeze_inputs(call)
        return move_labels(replay, call, constant, op=op)

    return rule


def reshape_as(replay: Replay, call: Call) -> Any:
    """Take the shape of another tensor."""
    return move_labels(replay, call, op=Tensor.reshape_as)


def _literal(size: Any) -> bool:
    return isinstance(size, int) and size != -1


def concatenate(replay: Replay, call: Call) -> Any:
    """Concatenating and stacking: only the joined dimension can hold different channels."""
    result = call.meta_result()
    dim = call.argument(1, "dim", "axis", default=0) % result.ndim
    values = call.values
    stack = call.name == "stack"
    shrunk = [max(value.labels.shape[d] for value in values) for d in range(values[0].meta.ndim)]

    def pick(value: LabeledTensor) -> Tensor:
        shape = [
            value.meta.shape[d] if d == dim and not stack else size for d, size in enumerate(shrunk)
        ]
        return value.labels.expand(shape)

    varying = {d for value in values for d in value.varying}
    others = varying if stack else varying - {dim}
    return move_labels(replay, call, [dim] if others else [], pick)


def roll(replay: Replay, call: Call) -> Any:
    """Rolling channels: those that come round the end stay, so that the others keep their order."""
    value = call.values[0]
    shifts, dims = call.argument(1, "shifts"), call.argument(2, "dims")
    if dims is None:
        return move_labels(replay, call) if not value.varying else replay.freeze_inputs(call)
    shifts, dims = ([one] if isinstance(one, int) else list(one) for one in (shifts, dims))
    for shift, dim in zip(shifts, dims, strict=True):
        dim = dim % value.meta.ndim
        if dim in value.varying:
            width = value.meta.shape[dim]
            round_the_end = slice(width - shift, None) if shift > 0 else slice(0, -shift)
            if abs(shift) >= width or call.name != "roll" or not _literal_shift(call):
                return replay.freeze_inputs(
                    call, "it shifts channels by a number that is not constant"
                )
            replay.freeze(value.along(dim)[round_the_end], call, "they come round the end")
    return move_labels(replay, call)


def _literal_shift(call: Call) -> bool:
    written = call.recorded_argument(1, "shifts")
    return all(isinstance(one, int) for one in ([written] if isinstance(written, int) else written))


def read_attribute(replay: Replay, call: Call) -> Any:
    """Shapes are read off; `x.T` and the like are moved."""
    if call.args[1] in ("T", "mT", "H", "mH"):
        return move_labels(replay, call)
    result = call.meta_result()
    return LabeledTensor(result, call.values[0].labels) if isinstance(result, Tensor) else result


register_operation(read_attribute, "getattr", moves=True)
register_operation(
    move,
    "flatten unsqueeze permute transpose swapaxes swapdims movedim moveaxis t adjoint ravel",
    nn.Flatten,
    moves=True,
    size_agnostic=True,
)
register_operation(
    move,
    "squeeze flip fliplr flipud rot90 repeat tile repeat_interleave unfold diagonal",
    moves=True,
)
register_operation(
    move, "pixel_shuffle pixel_unshuffle", nn.PixelShuffle, nn.PixelUnshuffle, moves=True
)
register_operation(reshape_to(1, "shape", "size"), "view reshape expand", moves=True)
register_operation(
    reshape_to(2, "unflattened_size", "sizes"), "unflatten", nn.Unflatten, moves=True
)
register_operation(reshape_as, "view_as reshape_as", moves=True)
register_operation(
    *(concatenate, "cat concat concatenate"),
    moves=True,
    size_agnostic=True,
    concatenates=True,
    result_shape=cat_shape,
)
register_operation(concatenate, "stack", moves=True, size_agnostic=True)
register_operation(roll, "roll", moves=True, same_shape=True)
