"""Operations that move or join entries, and operations that create tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.labels import LabeledTensor, compress, frozen_tensor, map_only, spread
from prunekit.graph.recording.steps import Step
from prunekit.graph.replay import Replay
from prunekit.graph.shapes import cat_shape
from prunekit.graph.table import Rule, register_operation


def move(replay: Replay, call: Call) -> Any:
    """Move the labels as the operation moves entries."""
    return move_labels(replay, call)


def move_labels(
    replay: Replay,
    call: Call,
    constant: Iterable[int] = (),
    pick: Callable[[LabeledTensor], Tensor] = LabeledTensor.full,
    op: Callable[..., Any] | None = None,
) -> Any:
    """Execute an operation that moves entries on the labels themselves.

    Nothing along the `constant` dimensions of the result can be removed. `pick` gives the labels of
    each value, `op` an operation in place of that of the call.
    """
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
    """Reduce the labels so that they vary along at most one dimension.

    If channels are spread over two dimensions, as after view(N, C//g, g, H, W), the labels along
    the second one are united, because only whole slices of one dimension can be removed.
    """
    varying = value.varying
    removable = [dim for dim in varying if dim not in set(constant)]
    if not varying:
        return value
    if not removable:
        replay.freeze(
            value.labels, call, "its sizes are constants; take them from x.shape or use -1"
        )
        return frozen_tensor(value.meta)
    labels = value.labels
    for dim in varying:
        if dim != removable[0]:
            replay.unite(labels, labels.narrow(dim, 0, 1), call)
            labels = labels.narrow(dim, 0, 1)
    return LabeledTensor(value.meta, compress(labels))


def reshape_to(first: int, *names: str) -> Rule:
    """Return a rule for view and the like; dimensions with constant sizes cannot shrink."""

    def rule(replay: Replay, call: Call) -> Any:
        sizes = call.recorded_argument(first, *names)
        if call.module is None and isinstance(sizes, int | Step):
            sizes = call.step.args[first:]
        if not isinstance(sizes, tuple | list):
            sizes = ()
        first_dim = 0
        if "unflattened_size" in names:
            first_dim = call.argument(1, "dim") % call.values[0].meta.ndim
        constant = [first_dim + dim for dim, size in enumerate(sizes) if _literal(size)]
        op = Tensor.reshape if call.name == "view" else None
        if call.name == "view" and any(isinstance(size, torch.dtype) for size in call.args):
            return replay.freeze_inputs(call)
        return move_labels(replay, call, constant, op=op)

    return rule


def reshape_as(replay: Replay, call: Call) -> Any:
    """Give the tensor the shape of another one."""
    return move_labels(replay, call, op=Tensor.reshape_as)


def _literal(size: Any) -> bool:
    return isinstance(size, int) and size != -1


def concatenate(replay: Replay, call: Call) -> Any:
    """Concatenate or stack; only along the joined dimension may labels differ."""
    result = call.meta_result()
    dim = call.argument(1, "dim", "axis", default=0) % result.ndim
    values = call.values
    stack = call.name == "stack"
    shape = [max(value.labels.shape[d] for value in values) for d in range(values[0].meta.ndim)]

    def pick(value: LabeledTensor) -> Tensor:
        sizes = [
            value.meta.shape[d] if d == dim and not stack else size for d, size in enumerate(shape)
        ]
        return value.labels.expand(sizes)

    varying = {d for value in values for d in value.varying}
    others = varying if stack else varying - {dim}
    return move_labels(replay, call, [dim] if others else [], pick)


def roll(replay: Replay, call: Call) -> Any:
    """Roll a tensor, and freeze the channels that pass over the end.

    So the others keep their order.
    """
    value = call.values[0]
    shifts, dims = call.argument(1, "shifts"), call.argument(2, "dims")
    if dims is None:
        return move_labels(replay, call) if not value.varying else replay.freeze_inputs(call)
    shifts, dims = ([item] if isinstance(item, int) else list(item) for item in (shifts, dims))
    dims = [dim % value.meta.ndim for dim in dims]
    if {*dims}.isdisjoint(value.varying):  # rolling a label for every entry takes long
        return LabeledTensor(call.meta_result(), value.labels)
    for shift, dim in zip(shifts, dims, strict=True):
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
    shifts = call.recorded_argument(1, "shifts")
    return all(
        isinstance(shift, int) for shift in ([shifts] if isinstance(shifts, int) else shifts)
    )


def read_attribute(replay: Replay, call: Call) -> Any:
    """Read a shape, or move entries for `x.T` and the like."""
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


def create(replay: Replay, call: Call) -> LabeledTensor:
    """Create a tensor of given sizes.

    A dimension whose size is read off another tensor's channels gets the labels of these. A size
    that is computed from such sizes gives blank labels, which are united with whatever is written
    there.
    """
    with torch.device("meta"):
        meta = call.meta_result().to("meta")
    sizes = call.recorded_argument(0, "size")
    if not isinstance(sizes, tuple | list):
        sizes = call.step.args
    for dim, size in enumerate(sizes):
        if isinstance(size, Step) and dim < meta.ndim and meta.shape[dim] > 1:
            labels = _channels(replay, size)
            if labels is None and _counts_channels(replay, size):
                labels = replay.blank_labels(call, meta, dim)
            if labels is not None and len(labels) == meta.shape[dim]:
                return LabeledTensor(meta, spread(labels, dim, meta.ndim))
    return frozen_tensor(meta)


def _channels(replay: Replay, size: Step) -> Tensor | None:
    """Return the labels of the dimension that a size was read off, if it holds channels."""
    shape, index = size, None
    if size.name == "getitem" and isinstance(size.args[0], Step):
        shape, index = size.args
    elif size.name == "size" and len(size.args) == 2:
        index = size.args[1]
    if shape.name not in ("getattr", "size") or not isinstance(index, int):
        return None
    source = replay.results.get(shape.args[0])
    if not isinstance(source, LabeledTensor):
        return None
    dim = index % source.meta.ndim
    return source.along(dim) if {*source.varying} == {dim} else None


def _counts_channels(replay: Replay, size: Step) -> bool:
    """Return whether a number was computed from how many channels something has."""
    return _channels(replay, size) is not None or (
        size.is_query and any(_counts_channels(replay, source) for source in size.sources)
    )


register_operation(create, "zeros ones empty full rand randn", creates=True)
