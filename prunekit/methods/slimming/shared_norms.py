"""Batch norms whose input channels are also read past them: where a channel selection belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import is_batch_norm
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.recording.runs import record
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.recording.twin import twin_of
from prunekit.graph.table import of_step
from prunekit.graph.walks import ahead, makers


def shared_norms(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The batch norms that read channels which other layers read past them, in order of execution.

    Such are the first norm of a pre-activation block and all norms of dense blocks; a norm behind
    its convolution is none, nor is one behind a `ChannelSelector`. Nothing is computed; raises
    TraceError like `ChannelGraph.trace`.
    """
    runs = record(model, Arguments.of(example))
    twin = twin_of(model)
    return tuple(dict.fromkeys(name for run in runs for name in _shared(twin, run)))


def _shared(twin: nn.Module, recording: Recording) -> Iterator[str]:
    layers = {step for step in recording.steps if _is_layer(twin, step)}
    for step in recording.steps:
        name = _norm(twin, step)
        if name is not None and _read_past(step, makers(step, layers), layers):
            yield name


def _norm(twin: nn.Module, step: Step) -> str | None:
    """The batch norm that a step calls; None for others, and for one that only lends its numbers.

    What stands in front of a module is not seen by functions that are given its parameters.
    """
    owner = str(step.target) if step.kind is Kind.LAYER else norm_owner(twin, step)
    if owner is None or not is_batch_norm(twin.get_submodule(owner)):
        return None
    return owner if step.calls and step.calls[-1][1] == owner else None


def _read_past(norm: Step, found: Collection[Step], layers: Collection[Step]) -> bool:
    """Whether a layer, or the caller, gets something of these makers that did not pass the norm."""
    return any(
        one.kind is Kind.OUTPUT or one in layers
        for one in ahead(found, lambda step: step is not norm and step not in layers)
    )


def _is_layer(twin: nn.Module, step: Step) -> bool:
    entry = of_step(step, twin)
    if entry is None or step.kind not in (Kind.LAYER, Kind.CALL):
        return False
    return entry.weighs or (entry.whole and entry.narrow is not None and not entry.norm)
