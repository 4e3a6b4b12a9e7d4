"""Which runs of a network are recorded: eval mode, and whatever else its forward may do."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from prunekit.errors import TraceError
from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.attributes import attributes_observed
from prunekit.graph.recording.branches import BranchSearch
from prunekit.graph.recording.circumstances import Conditions, ForwardPass, flipped_flags
from prunekit.graph.recording.lines import in_torch
from prunekit.graph.recording.twin import copy_network, first_line, set_mode
from prunekit.graph.recording.origins import UnrecordedTensor
from prunekit.graph.recording.recorder import Recorder
from prunekit.graph.recording.steps import Recording
from prunekit.modes import random_states_kept

# shapes alone where that is enough, then numbers, then numbers with sizes that are not followed
_FIDELITIES = ((False, True), (True, True), (True, False))


def record(model: nn.Module, example: Arguments) -> list[Recording]:
    """The run of a network in eval mode, and those that differ from it in what is called on what.

    Raises TraceError where eval mode fails.
    """
    return [one.recording for one in record_passes(model, example)]


def record_eval(model: nn.Module, example: Arguments) -> Recording:
    """The run in eval mode alone."""
    _check_signature(model, example)
    return _record_eval_pass(model, example.single_example()).recording


def record_passes(model: nn.Module, example: Arguments) -> list[ForwardPass]:
    """All runs that differ in what is called on what, the one in eval mode first.

    The others are train mode and gradients, flags and other sizes of the inputs, each where the
    forward may depend on it. What fails in train mode is recorded up to there; where a flag or a
    size makes the network fail, it does not take that.
    """
    _check_signature(model, example)
    example = example.single_example()
    first = _record_eval_pass(model, example)
    found = [first]
    for other in _other_modes(first):
        _add_if_new(found, record_pass(model, other))
    for under, changed in flipped_flags(model, example):
        again = _record_fallback(model, replace(first.conditions, example=changed, under=under))
        if again.works:
            _add_if_new(found, again)
    for again in BranchSearch(first, partial(_record_fallback, model)).passes():
        _add_if_new(found, again)
    return found


def record_pass(model: nn.Module, conditions: Conditions) -> ForwardPass:
    """A run of a fresh copy of a network; where it fails, `failed` of the recording says how."""
    return record_copy(copy_network(model, conditions.numbers), conditions)


def record_copy(network: nn.Module, conditions: Conditions) -> ForwardPass:
    """The same for a copy that was made before, which is used up."""
    set_mode(network, conditions.training)
    given = (
        conditions.example.map_tensors(lambda x: x.detach().clone())
        if conditions.numbers
        else conditions.example.on_meta()
    )
    recorder = Recorder(network, conditions.sizes)
    with (
        random_states_kept(),
        torch.set_grad_enabled(conditions.grad),
        attributes_observed(recorder.on_width_read, recorder.on_mode_read),
    ):
        try:
            recorder.run(given.args, dict(given.kwargs))
        except Exception as error:
            recorder.fail(_failure(error, recorder, conditions.example), error)
    recorder.recording.under = conditions.under
    kept = network if recorder.parameters_unchanged and not conditions.numbers else None
    return ForwardPass(kept, recorder.recording, conditions, recorder.queried, recorder.error)


def _add_if_new(found: list[ForwardPass], again: ForwardPass) -> None:
    if not any(again.recording.calls_same(one.recording) for one in found):
        found.append(again)


def _record_eval_pass(model: nn.Module, example: Arguments) -> ForwardPass:
    forward_pass = next(
        one
        for numbers, sizes in _FIDELITIES
        if (one := record_pass(model, Conditions(example, numbers, sizes))).works or not sizes
    )
    if forward_pass.works:
        return forward_pass
    raise TraceError(f"{type(model).__name__} {forward_pass.recording.failed}") from forward_pass.error


def _other_modes(first: ForwardPass) -> Iterator[Conditions]:
    if "training" in first.queried:
        yield replace(first.conditions, training=True, under="train mode")
    if "grad" in first.queried:
        yield replace(first.conditions, grad=True, under="gradients")


def _record_fallback(model: nn.Module, conditions: Conditions) -> ForwardPass:
    """A run with numbers where shapes are not enough for it."""
    forward_pass = record_pass(model, conditions)
    for numbers, sizes in _FIDELITIES[1:]:
        if forward_pass.works or not _needs_numbers(forward_pass.error):
            break
        forward_pass = record_pass(model, replace(conditions, numbers=numbers, sizes=sizes))
    return forward_pass


def _needs_numbers(error: Exception | None) -> bool:
    """Whether a run failed for being recorded, not for what it was given."""
    known = isinstance(error, UnrecordedTensor | NotImplementedError | TypeError)
    return known or "meta" in str(error).lower()


def _failure(error: Exception, recorder: Recorder, example: Arguments) -> str:
    """What failed and where, behind the name of the network."""
    if isinstance(error, UnrecordedTensor):
        return f"cannot be traced{_place(error)}: {first_line(error)}"
    at = recorder.describe_current(_place(error))
    return f"fails on an example of shape {example}{at}: {first_line(error)}"


def _check_signature(model: nn.Module, example: Arguments) -> None:
    """Raise TraceError where the example does not fit the arguments of the forward."""
    if not isinstance(model, nn.Module):
        copy_network(model)
    with suppress(ValueError):  # forwards that cannot be looked at
        signature = inspect.signature(model.forward)
        try:
            signature.bind(*example.args, **example.kwargs)
        except TypeError as error:
            named = ", ".join(f"{name}=" for name in example.kwargs)
            raise TraceError(
                f"{type(model).__name__}.forward takes ({', '.join(signature.parameters)}), the "
                f"example holds {named or f'{len(example.args)} tensor(s)'}; give an example with "
                "one tensor for each argument, or a dict with their names"
            ) from error


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if not in_torch(frame.filename)]
    if not mine:
        return ""
    last = mine[-1]
    code = linecache.getline(last.filename, last.lineno or 0).strip()
    shown = f" ({code})" if code else ""
    return f" at {Path(last.filename).name}:{last.lineno}{shown}"
