"""The dress rehearsal: a narrowed copy of the network is run for real and must do the same.

Python may read the widths of layers in ways that sizes do not see: a loop over `range(x.shape[1])`,
`self.conv.out_channels`, numpy. What it then does shows in the recording of the narrowed copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError, TraceError
from prunekit.graph.discovery import Dependencies
from prunekit.graph.layers import layer_named
from prunekit.graph.partition import FROZEN
from prunekit.graph.recording.circumstances import ForwardPass
from prunekit.graph.recording.twin import copy_network
from prunekit.graph.recording.runs import record_copy
from prunekit.graph.recording.steps import Kind, Step, callee, literals, tensors_in, without_repeats
from prunekit.graph.rehearsal import (
    NarrowedReplay,
    all_but_one,
    freeze_neighbours,
    half_of_units,
    validate,
)
from prunekit.graph.slicing import kept_indices, narrow_tensor, put_weight_back, renumber
from prunekit.graph.table import layer_operation, named_operation
from prunekit.graph.values import LabeledTensor, values_in

_ATTEMPTS = 8
_CALLS = (Kind.LAYER, Kind.CALL)
_WIDTHS = frozenset({int, float, str})
_SIZES = frozenset({"getattr", "size", "numel", "nelement", "stride"})

# weights of the same shapes, in which about as many values are picked, or the others
_OTHER_NUMBERS = (lambda weight: weight.flip(0), torch.neg, lambda weight: weight * 0)

Choice = Callable[[Dependencies, Tensor], Tensor]
ShapesMatch = Callable[[Step, Step], bool]


def validate_copies(model: nn.Module, runs: Sequence[ForwardPass], deps: Dependencies) -> None:
    """Freeze what makes a narrowed copy do something else than its labels promise.

    Only runs that read widths are repeated, with half of all units; with one unit of every layer
    too where widths are read off attributes, since nobody sees what those are compared with.
    Raises TraceError where freezing does not help.
    """
    fresh = without_repeats([forward_pass.recording for forward_pass in runs])
    reading = [
        one for one in runs if one.recording in fresh and one.works and _reads_widths(deps, one)
    ]
    settled: list[ForwardPass] = []  # those whose narrowed copies did the same at once
    for forward_pass in sorted(reading, key=lambda one: len(one.recording.steps), reverse=True):
        if any(_is_covered_by(deps, forward_pass, other) for other in settled):
            continue
        attributes = any(_removable(deps, layer) for layer, _ in forward_pass.recording.widths)
        choices = (half_of_units, all_but_one) if attributes else (half_of_units,)
        if all([_freeze_until_equal(model, forward_pass, deps, choose) for choose in choices]):
            settled.append(forward_pass)


def _reads_widths(deps: Dependencies, forward_pass: ForwardPass) -> bool:
    """Whether a run reads widths that can change."""
    attributes = any(_removable(deps, layer) for layer, _ in forward_pass.recording.widths)
    return attributes or any(True for _ in _size_queries(deps, forward_pass))


def _is_covered_by(deps: Dependencies, forward_pass: ForwardPass, other: ForwardPass) -> bool:
    """Whether all that a run calls is called in another on the same, which may call more.

    Flags may differ, such as that of a batch norm for its mode.
    """
    if not forward_pass.recording.widths.keys() <= other.recording.widths.keys():
        return False
    earliest = deps.repeats.earliest
    ours, others = (
        {earliest(step): step for step in one.recording.steps if step.kind in _CALLS}
        for one in (forward_pass, other)
    )
    forms = {_signature(deps, other) for key, other in others.items() if key not in ours}
    return all(key in others or _signature(deps, step) in forms for key, step in ours.items())


def _signature(deps: Dependencies, step: Step) -> tuple[Any, ...]:
    """What a step calls on what, but for its flags."""
    sources = [
        one.target if one.kind is Kind.TENSOR else deps.repeats.earliest(one)
        for one in step.sources
    ]
    return *callee(step), str(literals(step, _WIDTHS)), *sources


def _freeze_until_equal(
    model: nn.Module, forward_pass: ForwardPass, deps: Dependencies, choose: Choice
) -> bool:
    """Freeze until a narrowed copy does the same; returns whether it did at once."""
    for attempt in range(_ATTEMPTS):
        differing = _differing_steps(model, forward_pass, deps, choose)
        if not differing:
            return attempt == 0
        if _differs_by_itself(model, forward_pass):
            return False
        if not _freeze(deps, forward_pass, differing):
            break
        validate(deps)
    if forward_pass.conditions.numbers:
        return False  # what is computed decides there, as notes say
    raise TraceError(
        f"{type(deps.network).__name__} cannot be narrowed: {differing[0]} depends on channel "
        "numbers in a way that is not understood; take sizes from the shapes of the tensors at hand"
    )


def _differing_steps(
    model: nn.Module, forward_pass: ForwardPass, deps: Dependencies, choose: Choice
) -> list[Step]:
    """The steps that differ in a narrowed copy, up to the first that changes the course."""
    roots = deps.parts.roots()
    drop = choose(deps, roots)
    network = copy_network(model, forward_pass.conditions.numbers)
    try:
        _narrow(network, deps, drop[roots])
    except SurgeryError:
        return []  # the network itself will be refused in the same way
    again = record_copy(network, forward_pass.conditions).recording
    expected = _expected_shapes(deps, roots, drop, forward_pass.conditions.numbers)
    return [*_differences(forward_pass.recording.steps, again.steps, expected)]


def _differences(
    before: Sequence[Step], after: Sequence[Step], fits: ShapesMatch
) -> Iterator[Step]:
    places: dict[Step, int] = {}
    for place, (one, other) in enumerate(zip(before, after, strict=False)):
        places[one] = places[other] = place
        sources = [[places[source] for source in step.sources] for step in (one, other)]
        if callee(one) != callee(other) or sources[0] != sources[1] or not fits(one, other):
            yield one
            return
        if not _same_numbers(one, other):
            yield one


def _expected_shapes(deps: Dependencies, roots: Tensor, drop: Tensor, numbers: bool) -> ShapesMatch:
    """Whether results have the shapes that the labels promise.

    Where numbers are computed only channels count, since how many entries are picked may depend on
    them. Parameters of layers are judged by what the layers make of them.
    """
    rehearsal = NarrowedReplay(deps, roots, drop)

    def fits(value: LabeledTensor, tensor: Tensor) -> bool:
        shape = rehearsal.narrow_value(value).meta.shape if value.varying else value.meta.shape
        if numbers and len(shape) == tensor.ndim:
            return all(shape[dim] == tensor.shape[dim] for dim in value.varying)
        return shape == tensor.shape

    def all_fit(one: Step, other: Step) -> bool:
        values, tensors = values_in(deps.results[one]), tensors_in((other.result,))
        known = one.kind is not Kind.TENSOR and not rehearsal.is_unused(one)
        known = known and len(values) == len(tensors)
        return not known or all(map(fits, values, tensors))

    return all_fit


def _same_numbers(one: Step, other: Step) -> bool:
    """Whether the plain numbers among the arguments are equal, and constants that are small."""
    if one.kind is Kind.CONSTANT:
        a, b = one.target, other.target
        known = not a.is_meta and not b.is_meta and a.shape == b.shape
        return not known or bool(torch.equal(a, b))
    entry = named_operation(one.name)
    lent = entry is not None and bool(
        entry.argument_names
    )  # its sizes are narrowed with the layer's
    return lent or literals(one) == literals(other)


def _differs_by_itself(model: nn.Module, forward_pass: ForwardPass) -> bool:
    """Whether a copy that keeps its widths, with other weights if it has any, differs as well."""
    for changed in _OTHER_NUMBERS if forward_pass.conditions.numbers else (Tensor.detach,):
        network = copy_network(model, forward_pass.conditions.numbers)
        for parameter in network.parameters():
            parameter.data = changed(parameter.data)
        again = record_copy(network, forward_pass.conditions).recording
        if any(
            True for _ in _differences(forward_pass.recording.steps, again.steps, lambda *_: True)
        ):
            return True
    return False


def _freeze(deps: Dependencies, forward_pass: ForwardPass, differing: Sequence[Step]) -> bool:
    """Freeze the widths that may be the cause: those read nearby, those at hand, then all."""
    lines = {(step.line, step.kind) for step in differing if step.line} | {*differing}
    steps = [s for s in forward_pass.recording.steps if (s.line, s.kind) in lines or s in lines]
    title = str(differing[0])
    at = "" if differing[0].kind is Kind.CALL else f" at {differing[0].where}"
    why = f"{title}{at}, which goes by channel numbers in a way that is not followed"
    near = {_innermost_call(step) for step in steps}
    return (
        _freeze_read_widths(deps, forward_pass, why, near)
        or freeze_neighbours(deps, steps)
        or _freeze_read_widths(deps, forward_pass, why, None)
    )


def _freeze_read_widths(
    deps: Dependencies, forward_pass: ForwardPass, why: str, near: set[Any] | None
) -> bool:
    """Freeze the widths that the forwards of some modules read, or all forwards did."""
    paths = None if near is None else {path for _, path in near}
    read = [
        value.labels
        for step in _size_queries(deps, forward_pass)
        if near is None or _innermost_call(step) in near
        for source in step.sources
        for value in values_in(deps.results[source])
    ]
    for layer, path in forward_pass.recording.widths:
        if paths is None or path in paths:
            read += [table[layer] for table in (deps.ins, deps.outs) if layer in table]
    lost = [one for labels in read for one in deps.parts.freeze(labels)]
    if lost:
        deps.note(lost, why)
    return bool(lost)


def _innermost_call(step: Step) -> tuple[int, str]:
    """The innermost call in whose forward a step happened."""
    calls = step.calls[:-1] if step.kind is Kind.LAYER else step.calls
    return calls[-1] if calls else (0, "")


def _size_queries(deps: Dependencies, forward_pass: ForwardPass) -> Iterator[Step]:
    """The steps that read sizes which can change when the network is narrowed."""
    removable = deps.parts.roots() != FROZEN
    for step in forward_pass.recording.steps:
        if step.name in _SIZES and step.is_query:
            for source in step.sources:
                if source.kind is Kind.TENSOR or _changes(deps, step, source, removable):
                    yield step
                    break


def _changes(deps: Dependencies, step: Step, source: Step, removable: Tensor) -> bool:
    dim = next((arg for arg in step.args[1:] if isinstance(arg, int)), None)
    for value in values_in(deps.results[source]):
        one = dim is not None and dim % value.meta.ndim not in value.varying
        if value.varying and not one and bool(removable[value.labels].any()):
            return True
    return False


def _removable(deps: Dependencies, layer: str) -> bool:
    tables = [table[layer] for table in (deps.ins, deps.outs) if layer in table]
    return any(bool((labels != FROZEN).any()) for labels in tables)


def _narrow(network: nn.Module, deps: Dependencies, gone: Tensor) -> None:
    """Cut a copy, as surgery cuts the network."""
    for name, labels in deps.ins.items():
        kept = kept_indices(labels, gone), kept_indices(deps.outs[name], gone)
        if kept != (None, None):
            layer = layer_named(network, name)
            entry = layer_operation(layer)
            if entry is not None and entry.narrow is not None:
                entry.narrow(layer, *kept)
            put_weight_back(network, name, layer)
    for path, sides in deps.tensors.items():
        owner, _, leaf = path.rpartition(".")
        for dim, labels in sides.items():
            narrow_tensor(network.get_submodule(owner), leaf, dim, kept_indices(labels, gone))
    for path, labels in deps.picks.items():
        owner, _, leaf = path.rpartition(".")
        among = kept_indices(labels, gone)
        if among is not None:
            renumber(getattr(network.get_submodule(owner), leaf), among)
