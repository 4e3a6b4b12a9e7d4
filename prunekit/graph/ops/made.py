"""Tensors that a forward makes by itself, in sizes that it read off others."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.graph.calls import Call
from prunekit.graph.recording.steps import Step
from prunekit.graph.run import Run
from prunekit.graph.table import operation
from prunekit.graph.values import Value, fixed, spread


def made(run: Run, call: Call) -> Value:
    """A tensor of sizes that are given.

    A dimension as long as another tensor has channels, by its very size, has the same channels;
    one whose length was computed from such sizes has blank ones, until something is written there.
    """
    with torch.device("meta"):
        meta = call.on_meta().to("meta")
    sizes = call.written(0, "size")
    if not isinstance(sizes, tuple | list):
        sizes = call.step.args
    for dim, size in enumerate(sizes):
        if isinstance(size, Step) and dim < meta.ndim and meta.shape[dim] > 1:
            labels = _channels(run, size)
            if labels is None and _counts_channels(run, size):
                labels = run.blank(call, meta, dim)
            if labels is not None and len(labels) == meta.shape[dim]:
                return Value(meta, spread(labels, dim, meta.ndim))
    return fixed(meta)


def _channels(run: Run, size: Step) -> Tensor | None:
    """The labels of the dimension that a size was read off, where channels lie along it."""
    shape, at = size, None
    if size.name == "getitem" and isinstance(size.args[0], Step):
        shape, at = size.args
    elif size.name == "size" and len(size.args) == 2:
        at = size.args[1]
    if shape.name not in ("getattr", "size") or not isinstance(at, int):
        return None
    source = run.results.get(shape.args[0])
    if not isinstance(source, Value):
        return None
    dim = at % source.meta.ndim
    return source.along(dim) if {*source.varying} == {dim} else None


def _counts_channels(run: Run, size: Step) -> bool:
    """Whether a number was computed from how many channels something has."""
    return _channels(run, size) is not None or (
        size.asks and any(_counts_channels(run, source) for source in size.sources)
    )


operation(made, "zeros ones empty full rand randn", makes=True)
