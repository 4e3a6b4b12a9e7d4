"""Run a narrowed copy of the network for real, and compare its recording with the full one.

Python may read the widths of layers in ways that recorded sizes do not show: a loop over
`range(x.shape[1])`, `self.conv.out_channels`, numpy. The recording of the narrowed copy shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError, TraceError
from prunekit.graph.dependencies import Dependencies
from prunekit.graph.labels import FROZEN, LabeledTensor, values_in
from prunekit.graph.layers import layer_named
from prunekit.graph.recording.conditions import ForwardPass
from prunekit.graph.recording.copies import copy_network
from prunekit.graph.recording.passes import record_copy
from prunekit.graph.recording.steps import Kind, Step, callee, literals, tensors_in, without_repeats
from prunekit.graph.slicing import kept_indices, narrow_tensor, put_weight_back, renumber
from prunekit.graph.table import layer_operation, named_operation
from prunekit.graph.validation import (
    NarrowedReplay,
    all_but_one,
    freeze_neighbours,
    half_of_units,
    validate,
)

_ATTEMPTS = 8
_CALLS = (Kind.LAYER, Kind.CALL)
_LITERALS = frozenset({int, float, str})  # without flags
_SIZE_QUERIES = frozenset({"getattr", "size", "numel", "nelement", "stride"})

# other weights of the same shapes: about as many values are picked by them, or the opposite ones
_OTHER_NUMBERS = (lambda weight: weight.flip(0), torch.neg, lambda weight: weight * 0)

Choice = Callable[[Dependencies, Tensor], Tensor]  # of the units to remove, as in validation
ShapesMatch = Callable[[Step, Step], bool]


def validate_copies(model: nn.Module, passes: Sequence[ForwardPass], deps: Dependencies) -> None:
    """Freeze channels until narrowed copies do what their labels promise.

    Only passes that read widths are repeated, with half of all units removed. Where widths are read
    off attributes, they are also repeated with one unit per layer, since comparisons with them are
    not recorded. Raises TraceError where freezing does not help.
    """
    fresh = without_repeats([forward_pass.recording for forward_pass in passes])
    reading = [
        forward_pass
        for forward_pass in passes
        if forward_pass.recording in fresh
        and forward_pass.works
        and _reads_widths(deps, forward_pass)
    ]
    equal: list[ForwardPass] = []  # passes whose narrowed copies did the same at once
    by_length = sorted(reading, key=lambda item: len(item.recording.steps), reverse=True)
    for forward_pass in by_length:
        if any(_is_covered_by(deps, forward_pass, other) for other in equal):
            continue
        attributes = any(_is_removable(deps, layer) for layer, _ in forward_pass.recording.widths)
        choices = (half_of_units, all_but_one) if attributes else (half_of_units,)
        if all([_freeze_until_equal(model, forward_pass, deps, choose) for choose in choices]):
            equal.append(forward_pass)


def _reads_widths(deps: Dependencies, forward_pass: ForwardPass) -> bool:
    """Return whether a pass reads widths that can change."""
    attributes = any(_is_removable(deps, layer) for layer, _ in forward_pass.recording.widths)
    return attributes or any(True for _ in _size_queries(deps, forward_pass))


def _is_covered_by(deps: Dependencies, forward_pass: ForwardPass, other: ForwardPass) -> bool:
    """Return whether another pass makes all calls of this one on the same values.

    Flags may differ, such as that of a batch norm for its mode.
    """
    if not forward_pass.recording.widths.keys() <= other.recording.widths.keys():
        return False
    earliest = deps.repeats.earliest
    own, others = (
        {earliest(step): step for step in item.recording.steps if step.kind in _CALLS}
        for item in (forward_pass, other)
    )
    signatures = {_signature(deps, step) for key, step in others.items() if key not in own}
    return all(key in others or _signature(deps, step) in signatures for key, step in own.items())


def _signature(deps: Dependencies, step: Step) -> tuple[Any, ...]:
    """Return the callee and the arguments of a step, without flags."""
    sources = [
        source.target if source.kind is Kind.TENSOR else deps.repeats.earliest(source)
        for source in step.sources
    ]
    return *callee(step), str(literals(step, _LITERALS)), *sources


def _freeze_until_equal(
    model: nn.Module, forward_pass: ForwardPass, deps: Dependencies, choose: Choice
) -> bool:
    """Freeze until a narrowed copy does the same, and return whether it did at once."""
    for attempt in range(_ATTEMPTS):
        differing = _differing_steps(model, forward_pass, deps, choose)
        if not differing:
            return attempt == 0
        if _differs_by_itself(model, forward_pass):
            return False
        if not _freeze_causes(deps, forward_pass, differing):
            break
        validate(deps)
    if forward_pass.conditions.numbers:
        return False  # numbers decide there, and notes say so
    raise TraceError(
        f"{type(deps.network).__name__} cannot be narrowed: {differing[0]} depends on channel "
        "numbers in a way that is not understood; take sizes from the shapes of the tensors at hand"
    )


def _differing_steps(
    model: nn.Module, forward_pass: ForwardPass, deps: Dependencies, choose: Choice
) -> list[Step]:
    """Return the steps that differ in a narrowed copy, up to the first that calls another thing."""
    roots = deps.parts.roots()
    drop = choose(deps, roots)
    network = copy_network(model, forward_pass.conditions.numbers)
    try:
        _narrow(network, deps, drop[roots])
    except SurgeryError:
        return []  # the network itself will be refused in the same way
    again = record_copy(network, forward_pass.conditions).recording
    matches = _expected_shapes(deps, roots, drop, forward_pass.conditions.numbers)
    return [*_differences(forward_pass.recording.steps, again.steps, matches)]


def _differences(
    before: Sequence[Step], after: Sequence[Step], matches: ShapesMatch
) -> Iterator[Step]:
    positions: dict[Step, int] = {}
    for position, (step, other) in enumerate(zip(before, after, strict=False)):
        positions[step] = positions[other] = position
        sources = [[positions[source] for source in item.sources] for item in (step, other)]
        if callee(step) != callee(other) or sources[0] != sources[1] or not matches(step, other):
            yield step
            return
        if not _same_numbers(step, other):
            yield step


def _expected_shapes(deps: Dependencies, roots: Tensor, drop: Tensor, numbers: bool) -> ShapesMatch:
    """Return a function that tells whether results have the shapes that the labels promise.

    If the pass computes `numbers`, only channels are compared, since the number of entries that are
    picked may depend on them. Parameters of layers are judged by the results of the layers.
    """
    replay = NarrowedReplay(deps, roots, drop)

    def matches(value: LabeledTensor, tensor: Tensor) -> bool:
        shape = replay.narrow_value(value).meta.shape if value.varying else value.meta.shape
        if numbers and len(shape) == tensor.ndim:
            return all(shape[dim] == tensor.shape[dim] for dim in value.varying)
        return shape == tensor.shape

    def all_match(step: Step, other: Step) -> bool:
        values, tensors = values_in(deps.results[step]), tensors_in((other.result,))
        comparable = step.kind is not Kind.TENSOR and not replay.is_unused(step)
        comparable = comparable and len(values) == len(tensors)
        return not comparable or all(map(matches, values, tensors))

    return all_match


def _same_numbers(step: Step, other: Step) -> bool:
    """Return whether the plain numbers among the arguments are equal, or two constants."""
    if step.kind is Kind.CONSTANT:
        a, b = step.target, other.target
        comparable = not a.is_meta and not b.is_meta and a.shape == b.shape
        return not comparable or bool(torch.equal(a, b))
    entry = named_operation(step.name)
    of_layer = entry is not None and bool(entry.argument_names)  # sizes are narrowed with the layer
    return of_layer or literals(step) == literals(other)


def _differs_by_itself(model: nn.Module, forward_pass: ForwardPass) -> bool:
    """Return whether a copy of full width differs as well, with other numbers if it has any."""
    numbers = forward_pass.conditions.numbers
    for change in _OTHER_NUMBERS if numbers else (Tensor.detach,):
        network = copy_network(model, numbers)
        for parameter in network.parameters():
            parameter.data = change(parameter.data)
        again = record_copy(network, forward_pass.conditions).recording
        steps = forward_pass.recording.steps
        if any(True for _ in _differences(steps, again.steps, lambda *_: True)):
            return True
    return False


def _freeze_causes(
    deps: Dependencies, forward_pass: ForwardPass, differing: Sequence[Step]
) -> bool:
    """Freeze the widths that may be the cause, and return whether that changed anything.

    First those that are read nearby are frozen, then those of the differing steps, then all.
    """
    lines = {(step.line, step.kind) for step in differing if step.line} | {*differing}
    steps = [s for s in forward_pass.recording.steps if (s.line, s.kind) in lines or s in lines]
    title = str(differing[0])
    at = "" if differing[0].kind is Kind.CALL else f" at {differing[0].where}"
    reason = f"{title}{at}, which goes by channel numbers in a way that is not followed"
    nearby = {_innermost_call(step) for step in steps}
    return (
        _freeze_read_widths(deps, forward_pass, reason, nearby)
        or freeze_neighbours(deps, steps)
        or _freeze_read_widths(deps, forward_pass, reason, None)
    )


def _freeze_read_widths(
    deps: Dependencies,
    forward_pass: ForwardPass,
    reason: str,
    calls: set[tuple[int, str]] | None,
) -> bool:
    """Freeze the widths that these calls of modules read, or all (None)."""
    paths = None if calls is None else {path for _, path in calls}
    read = [
        value.labels
        for step in _size_queries(deps, forward_pass)
        if calls is None or _innermost_call(step) in calls
        for source in step.sources
        for value in values_in(deps.results[source])
    ]
    for layer, path in forward_pass.recording.widths:
        if paths is None or path in paths:
            read += [table[layer] for table in (deps.ins, deps.outs) if layer in table]
    ids = [unit for labels in read for unit in deps.parts.freeze(labels)]
    if ids:
        deps.log.note(ids, reason)
    return bool(ids)


def _innermost_call(step: Step) -> tuple[int, str]:
    """Return the innermost call of a module in whose forward a step happened."""
    calls = step.calls[:-1] if step.kind is Kind.LAYER else step.calls
    return calls[-1] if calls else (0, "")


def _size_queries(deps: Dependencies, forward_pass: ForwardPass) -> Iterator[Step]:
    """Yield the steps that read sizes which can change when the network is narrowed."""
    removable = deps.parts.roots() != FROZEN
    for step in forward_pass.recording.steps:
        if step.name in _SIZE_QUERIES and step.is_query:
            for source in step.sources:
                if source.kind is Kind.TENSOR or _can_change(deps, step, source, removable):
                    yield step
                    break


def _can_change(deps: Dependencies, step: Step, source: Step, removable: Tensor) -> bool:
    dim = next((arg for arg in step.args[1:] if isinstance(arg, int)), step.item)
    for value in values_in(deps.results[source]):
        constant = dim is not None and dim % value.meta.ndim not in value.varying
        if value.varying and not constant and bool(removable[value.labels].any()):
            return True
    return False


def _is_removable(deps: Dependencies, layer: str) -> bool:
    tables = [table[layer] for table in (deps.ins, deps.outs) if layer in table]
    return any(bool((labels != FROZEN).any()) for labels in tables)


def _narrow(network: nn.Module, deps: Dependencies, removed: Tensor) -> None:
    """Narrow a copy like surgery narrows the network; `removed` is a mask over labels."""
    for name, labels in deps.ins.items():
        kept = kept_indices(labels, removed), kept_indices(deps.outs[name], removed)
        if kept != (None, None):
            layer = layer_named(network, name)
            entry = layer_operation(layer)
            if entry is not None and entry.narrow is not None:
                entry.narrow(layer, *kept)
            put_weight_back(network, name, layer)
    for path, sides in deps.tensors.items():
        owner, _, leaf = path.rpartition(".")
        for dim, labels in sides.items():
            narrow_tensor(network.get_submodule(owner), leaf, dim, kept_indices(labels, removed))
    for path, labels in deps.picks.items():
        owner, _, leaf = path.rpartition(".")
        among = kept_indices(labels, removed)
        if among is not None:
            renumber(getattr(network.get_submodule(owner), leaf), among)
