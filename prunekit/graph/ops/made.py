"""Tensors that a forward makes by itself, in sizes that it read off others."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.recording.steps import Step
from prunekit.graph.run import Replay
from prunekit.graph.table import register_operation
from prunekit.graph.values import LabeledTensor, frozen_tensor, spread


def create(replay: Replay, call: Call) -> LabeledTensor:
    """A tensor of sizes that are given.

    A dimension as long as another tensor has channels, by its very size, has the same channels;
    one whose length was computed from such sizes has blank ones, until something is written there.
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
    """The labels of the dimension that a size was read off, where channels lie along it."""
    shape, at = size, None
    if size.name == "getitem" and isinstance(size.args[0], Step):
        shape, at = size.args
    elif size.name == "size" and len(size.args) == 2:
        at = size.args[1]
    if shape.name not in ("getattr", "size") or not isinstance(at, int):
        return None
    source = replay.results.get(shape.args[0])
    if not isinstance(source, LabeledTensor):
        return None
    dim = at % source.meta.ndim
    return source.along(dim) if {*source.varying} == {dim} else None


def _counts_channels(replay: Replay, size: Step) -> bool:
    """Whether a number was computed from how many channels something has."""
    return _channels(replay, size) is not None or (
        size.is_query and any(_counts_channels(replay, source) for source in size.sources)
    )


register_operation(create, "zeros ones empty full rand randn", creates=True)
