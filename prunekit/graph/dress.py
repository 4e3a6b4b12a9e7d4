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
from prunekit.graph.discovery import Discovery
from prunekit.graph.layers import layer_named
from prunekit.graph.partition import FIXED
from prunekit.graph.recording.circumstances import Taken
from prunekit.graph.recording.runs import run_twin
from prunekit.graph.recording.steps import Kind, Step, called, literals, novel, tensors_among
from prunekit.graph.recording.twin import twin_of
from prunekit.graph.rehearsal import Rehearsal, but_one, freeze_around, half, rehearse
from prunekit.graph.slicing import kept_indices, narrow_tensor, number_anew, put_back
from prunekit.graph.table import of_layer, of_name
from prunekit.graph.values import Value, values_in

_ATTEMPTS = 8
_CALLS = (Kind.LAYER, Kind.CALL)
_WIDTHS = frozenset({int, float, str})
_SIZES = frozenset({"getattr", "size", "numel", "nelement", "stride"})

# weights of the same shapes, in which about as many values are picked, or the others
_OTHER_NUMBERS = (lambda weight: weight.flip(0), torch.neg, lambda weight: weight * 0)

Dropped = Callable[[Discovery, Tensor], Tensor]
Fits = Callable[[Step, Step], bool]


def rehearse_dressed(model: nn.Module, runs: Sequence[Taken], first: Discovery) -> None:
    """Freeze what makes a narrowed copy do something else than its labels promise.

    Only runs that read widths are repeated, with half of all units; with one unit of every layer
    too where widths are read off attributes, since nobody sees what those are compared with.
    Raises TraceError where freezing does not help.
    """
    fresh = novel([taken.recording for taken in runs])
    reading = [one for one in runs if one.recording in fresh and one.works and _reads(first, one)]
    settled: list[Taken] = []  # those whose narrowed copies did the same at once
    for taken in sorted(reading, key=lambda one: len(one.recording.steps), reverse=True):
        if any(_within_other(first, taken, other) for other in settled):
            continue
        attributes = any(_removable(first, layer) for layer, _ in taken.recording.widths)
        scenes = (half, but_one) if attributes else (half,)
        if all([_settle(model, taken, first, dropped) for dropped in scenes]):
            settled.append(taken)


def _reads(first: Discovery, taken: Taken) -> bool:
    """Whether a run reads widths that can change."""
    attributes = any(_removable(first, layer) for layer, _ in taken.recording.widths)
    return attributes or any(True for _ in _asked(first, taken))


def _within_other(first: Discovery, taken: Taken, other: Taken) -> bool:
    """Whether all that a run calls is called in another on the same, which may call more.

    Flags may differ, such as that of a batch norm for its mode.
    """
    if not taken.recording.widths.keys() <= other.recording.widths.keys():
        return False
    earliest = first.repeats.earliest
    ours, others = (
        {earliest(step): step for step in one.recording.steps if step.kind in _CALLS}
        for one in (taken, other)
    )
    forms = {_form(first, other) for key, other in others.items() if key not in ours}
    return all(key in others or _form(first, step) in forms for key, step in ours.items())


def _form(first: Discovery, step: Step) -> tuple[Any, ...]:
    """What a step calls on what, but for its flags."""
    sources = [
        one.target if one.kind is Kind.TENSOR else first.repeats.earliest(one)
        for one in step.sources
    ]
    return *called(step), str(literals(step, _WIDTHS)), *sources


def _settle(model: nn.Module, taken: Taken, first: Discovery, dropped: Dropped) -> bool:
    """Freeze until a narrowed copy does the same; returns whether it did at once."""
    for attempt in range(_ATTEMPTS):
        differing = _differing(model, taken, first, dropped)
        if not differing:
            return attempt == 0
        if _differs_by_itself(model, taken):
            return False
        if not _freeze(first, taken, differing):
            break
        rehearse(first)
    if taken.at.numbers:
        return False  # what is computed decides there, as notes say
    raise TraceError(
        f"{type(first.twin).__name__} cannot be narrowed: {differing[0]} depends on channel "
        "numbers in a way that is not understood; take sizes from the shapes of the tensors at hand"
    )


def _differing(model: nn.Module, taken: Taken, first: Discovery, dropped: Dropped) -> list[Step]:
    """The steps that differ in a narrowed copy, up to the first that changes the course."""
    roots = first.parts.roots()
    drop = dropped(first, roots)
    twin = twin_of(model, taken.at.numbers)
    try:
        _narrow(twin, first, drop[roots])
    except SurgeryError:
        return []  # the network itself will be refused in the same way
    again = run_twin(twin, taken.at).recording
    promised = _promised(first, roots, drop, taken.at.numbers)
    return [*_compared(taken.recording.steps, again.steps, promised)]


def _compared(before: Sequence[Step], after: Sequence[Step], fits: Fits) -> Iterator[Step]:
    places: dict[Step, int] = {}
    for place, (one, other) in enumerate(zip(before, after, strict=False)):
        places[one] = places[other] = place
        sources = [[places[source] for source in step.sources] for step in (one, other)]
        if called(one) != called(other) or sources[0] != sources[1] or not fits(one, other):
            yield one
            return
        if not _same_numbers(one, other):
            yield one


def _promised(first: Discovery, roots: Tensor, drop: Tensor, numbers: bool) -> Fits:
    """Whether results have the shapes that the labels promise.

    Where numbers are computed only channels count, since how many entries are picked may depend on
    them. Parameters of layers are judged by what the layers make of them.
    """
    rehearsal = Rehearsal(first, roots, drop)

    def fits(value: Value, tensor: Tensor) -> bool:
        shape = rehearsal.shrink(value).meta.shape if value.varying else value.meta.shape
        if numbers and len(shape) == tensor.ndim:
            return all(shape[dim] == tensor.shape[dim] for dim in value.varying)
        return shape == tensor.shape

    def all_fit(one: Step, other: Step) -> bool:
        values, tensors = values_in(first.results[one]), tensors_among((other.result,))
        known = one.kind is not Kind.TENSOR and not rehearsal.idle(one)
        known = known and len(values) == len(tensors)
        return not known or all(map(fits, values, tensors))

    return all_fit


def _same_numbers(one: Step, other: Step) -> bool:
    """Whether the plain numbers among the arguments are equal, and constants that are small."""
    if one.kind is Kind.CONSTANT:
        a, b = one.target, other.target
        known = not a.is_meta and not b.is_meta and a.shape == b.shape
        return not known or bool(torch.equal(a, b))
    entry = of_name(one.name)
    lent = entry is not None and bool(entry.takes)  # its sizes are narrowed with the layer's
    return lent or literals(one) == literals(other)


def _differs_by_itself(model: nn.Module, taken: Taken) -> bool:
    """Whether a copy that keeps its widths, with other weights if it has any, differs as well."""
    for changed in _OTHER_NUMBERS if taken.at.numbers else (Tensor.detach,):
        twin = twin_of(model, taken.at.numbers)
        for parameter in twin.parameters():
            parameter.data = changed(parameter.data)
        again = run_twin(twin, taken.at).recording
        if any(True for _ in _compared(taken.recording.steps, again.steps, lambda *_: True)):
            return True
    return False


def _freeze(first: Discovery, taken: Taken, differing: Sequence[Step]) -> bool:
    """Freeze the widths that may be the cause: those read nearby, those at hand, then all."""
    lines = {(step.line, step.kind) for step in differing if step.line} | {*differing}
    steps = [s for s in taken.recording.steps if (s.line, s.kind) in lines or s in lines]
    title = str(differing[0])
    at = "" if differing[0].kind is Kind.CALL else f" at {differing[0].where}"
    why = f"{title}{at}, which goes by channel numbers in a way that is not followed"
    near = {_within(step) for step in steps}
    return (
        _freeze_read(first, taken, why, near)
        or freeze_around(first, steps)
        or _freeze_read(first, taken, why, None)
    )


def _freeze_read(first: Discovery, taken: Taken, why: str, near: set[Any] | None) -> bool:
    """Freeze the widths that the forwards of some modules read, or all forwards did."""
    paths = None if near is None else {path for _, path in near}
    read = [
        value.labels
        for step in _asked(first, taken)
        if near is None or _within(step) in near
        for source in step.sources
        for value in values_in(first.results[source])
    ]
    for layer, path in taken.recording.widths:
        if paths is None or path in paths:
            read += [table[layer] for table in (first.ins, first.outs) if layer in table]
    lost = [one for labels in read for one in first.parts.freeze(labels)]
    if lost:
        first.note(lost, why)
    return bool(lost)


def _within(step: Step) -> tuple[int, str]:
    """The innermost call in whose forward a step happened."""
    calls = step.calls[:-1] if step.kind is Kind.LAYER else step.calls
    return calls[-1] if calls else (0, "")


def _asked(first: Discovery, taken: Taken) -> Iterator[Step]:
    """The steps that read sizes which can change when the network is narrowed."""
    removable = first.parts.roots() != FIXED
    for step in taken.recording.steps:
        if step.name in _SIZES and step.asks:
            for source in step.sources:
                if source.kind is Kind.TENSOR or _changes(first, step, source, removable):
                    yield step
                    break


def _changes(first: Discovery, step: Step, source: Step, removable: Tensor) -> bool:
    dim = next((arg for arg in step.args[1:] if isinstance(arg, int)), None)
    for value in values_in(first.results[source]):
        one = dim is not None and dim % value.meta.ndim not in value.varying
        if value.varying and not one and bool(removable[value.labels].any()):
            return True
    return False


def _removable(first: Discovery, layer: str) -> bool:
    tables = [table[layer] for table in (first.ins, first.outs) if layer in table]
    return any(bool((labels != FIXED).any()) for labels in tables)


def _narrow(twin: nn.Module, first: Discovery, gone: Tensor) -> None:
    """Cut a copy, as surgery cuts the network."""
    for name, labels in first.ins.items():
        kept = kept_indices(labels, gone), kept_indices(first.outs[name], gone)
        if kept != (None, None):
            layer = layer_named(twin, name)
            entry = of_layer(layer)
            if entry is not None and entry.narrow is not None:
                entry.narrow(layer, *kept)
            put_back(twin, name, layer)
    for path, sides in first.held.items():
        owner, _, leaf = path.rpartition(".")
        for dim, labels in sides.items():
            narrow_tensor(twin.get_submodule(owner), leaf, dim, kept_indices(labels, gone))
    for path, labels in first.picks.items():
        owner, _, leaf = path.rpartition(".")
        among = kept_indices(labels, gone)
        if among is not None:
            number_anew(getattr(twin.get_submodule(owner), leaf), among)
