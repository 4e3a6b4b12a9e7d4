"""Batch norms whose input channels are also read past them: where a channel selection belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import BATCH_NORMS, CONSUMERS, FUNCTIONS, norm_owner
from prunekit.graph.recordings import record
from prunekit.graph.rules import asks
from prunekit.graph.select import ChannelSelection
from prunekit.graph.steps import Kind, Recording, Step
from prunekit.graph.twin import twin_of


def shared_norms(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The batch norms that read channels which other layers read past them, in order of execution.

    Such are the first norm of a pre-activation block and all norms of dense blocks; a norm behind
    its convolution is none, nor is one behind a `ChannelSelection`. Nothing is computed; raises
    TraceError like `ChannelGraph.trace`.
    """
    runs = record(model, Arguments.of(example))
    twin = twin_of(model)
    return tuple(dict.fromkeys(name for run in runs for name in _shared(twin, run)))


def _shared(twin: nn.Module, recording: Recording) -> Iterator[str]:
    layers = {step for step in recording.steps if _is_layer(twin, step)}
    for step in recording.steps:
        name = _norm(twin, step)
        if name is not None and _read_past(step, _makers(step.sources, layers), layers):
            yield name


def _norm(twin: nn.Module, step: Step) -> str | None:
    """The batch norm that a step calls; None for others, and for one that only lends its numbers.

    What stands in front of a module is not seen by functions that are given its parameters.
    """
    if step.kind is Kind.LAYER:
        return str(step.target) if isinstance(_called(twin, step), BATCH_NORMS) else None
    owner = norm_owner(twin, step)
    if owner is None or not isinstance(twin.get_submodule(owner), BATCH_NORMS):
        return None
    return owner if step.calls and step.calls[-1][1] == owner else None


def _makers(sources: Collection[Step], layers: Collection[Step]) -> set[Step]:
    """The layers whose channels arrive here, through whatever lies between."""
    found, seen, queue = set(), set(sources), [*sources]
    while queue:
        step = queue.pop()
        if step in layers:
            found.add(step)
            continue
        new = [source for source in step.sources if source not in seen]
        seen.update(new)
        queue.extend(new)
    return found


def _read_past(norm: Step, makers: Collection[Step], layers: Collection[Step]) -> bool:
    """Whether a layer, or the caller, gets something of these makers that did not pass the norm."""
    seen, queue = {norm, *makers}, [*makers]
    while queue:
        for user in queue.pop().users:
            if user.kind is Kind.OUTPUT or user in layers:
                return True
            if user not in seen and not asks(user):
                seen.add(user)
                queue.append(user)
    return False


def _is_layer(twin: nn.Module, step: Step) -> bool:
    if step.kind is Kind.LAYER:
        return isinstance(_called(twin, step), (*CONSUMERS, ChannelSelection))
    return step.name in FUNCTIONS


def _called(twin: nn.Module, step: Step) -> nn.Module:
    return twin.get_submodule(str(step.target))
