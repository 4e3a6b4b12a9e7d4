"""Record the forward passes of a network: eval mode, and everything else its forward may do."""

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
from prunekit.graph.recording.branches import BranchSearch
from prunekit.graph.recording.conditions import Conditions, ForwardPass, flipped_flags
from prunekit.graph.recording.copies import copy_network, first_line, set_mode
from prunekit.graph.recording.hooks import attributes_observed
from prunekit.graph.recording.recorder import Recorder
from prunekit.graph.recording.steps import Recording, in_torch
from prunekit.graph.recording.tracking import UnrecordedTensor
from prunekit.modes import random_states_kept

# (numbers, sizes): shapes alone if that is enough, then numbers, then sizes that are not tracked
_FIDELITIES = ((False, True), (True, True), (True, False))


def record(model: nn.Module, example: Arguments) -> list[Recording]:
    """Return the recording in eval mode, and those that make other calls or on other values.

    Raises TraceError if eval mode fails.
    """
    return [forward_pass.recording for forward_pass in record_passes(model, example)]


def record_eval(model: nn.Module, example: Arguments) -> Recording:
    """Return the recording in eval mode alone."""
    _check_signature(model, example)
    return _record_eval_pass(model, example.single_example()).recording


def record_batch(model: nn.Module, batch: Arguments) -> Recording:
    """Return the recording in eval mode for a whole batch, whose size the forward may read."""
    return _record_eval_pass(model, batch).recording


def record_passes(model: nn.Module, example: Arguments) -> list[ForwardPass]:
    """Return all passes that make other calls or on other values, the one in eval mode first.

    The others have train mode, gradients, other flags, and other sizes of inputs, each if the
    forward may depend on it. In train mode, a pass that fails is recorded up to the error; with
    other flags and sizes it is left out, since the network does not accept them.
    """
    _check_signature(model, example)
    example = example.single_example()
    first = _record_eval_pass(model, example)
    passes = [first]
    for conditions in _other_modes(first):
        _add_if_new(passes, record_pass(model, conditions))
    for description, flipped in flipped_flags(model, example):
        other = _record_fallback(
            model, replace(first.conditions, example=flipped, under=description)
        )
        if other.works:
            _add_if_new(passes, other)
    for other in BranchSearch(first, partial(_record_fallback, model)).passes():
        _add_if_new(passes, other)
    return passes


def record_pass(model: nn.Module, conditions: Conditions) -> ForwardPass:
    """Record a fresh copy of a network; if it fails, `failed` of the recording says how."""
    return record_copy(copy_network(model, conditions.numbers), conditions)


def record_copy(network: nn.Module, conditions: Conditions) -> ForwardPass:
    """Record a copy that was made before, and is used up."""
    set_mode(network, conditions.training)
    arguments = (
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
            recorder.run(arguments.args, dict(arguments.kwargs))
        except Exception as error:
            recorder.fail(_failure(error, recorder, conditions.example), error)
    recorder.recording.under = conditions.under
    kept = network if recorder.parameters_unchanged and not conditions.numbers else None
    return ForwardPass(kept, recorder.recording, conditions, recorder.queried, recorder.error)


def _add_if_new(passes: list[ForwardPass], other: ForwardPass) -> None:
    if not any(other.recording.calls_same(kept.recording) for kept in passes):
        passes.append(other)


def _record_eval_pass(model: nn.Module, example: Arguments) -> ForwardPass:
    for numbers, sizes in _FIDELITIES:
        forward_pass = record_pass(model, Conditions(example, numbers, sizes))
        if forward_pass.works:
            return forward_pass
    raise TraceError(
        f"{type(model).__name__} {forward_pass.recording.failed}"
    ) from forward_pass.error


def _other_modes(first: ForwardPass) -> Iterator[Conditions]:
    if "training" in first.queried:
        yield replace(first.conditions, training=True, under="train mode")
    if "grad" in first.queried:
        yield replace(first.conditions, grad=True, under="gradients")


def _record_fallback(model: nn.Module, conditions: Conditions) -> ForwardPass:
    """Record a pass, with numbers if shapes are not enough for it."""
    forward_pass = record_pass(model, conditions)
    for numbers, sizes in _FIDELITIES[1:]:
        if forward_pass.works or not _needs_numbers(forward_pass.error):
            break
        forward_pass = record_pass(model, replace(conditions, numbers=numbers, sizes=sizes))
    return forward_pass


def _needs_numbers(error: Exception | None) -> bool:
    """Return whether a pass failed because of the recording, and not because of its input."""
    of_recorder = isinstance(error, UnrecordedTensor | NotImplementedError | TypeError)
    return of_recorder or "meta" in str(error).lower()


def _failure(error: Exception, recorder: Recorder, example: Arguments) -> str:
    """Return what failed and where, as text after the name of the network."""
    if isinstance(error, UnrecordedTensor):
        return f"cannot be traced{_place(error)}: {first_line(error)}"
    at = recorder.describe_current(_place(error))
    return f"fails on an example of shape {example}{at}: {first_line(error)}"


def _check_signature(model: nn.Module, example: Arguments) -> None:
    """Raise TraceError if the example does not fit the arguments of the forward."""
    if not isinstance(model, nn.Module):
        copy_network(model)
    with suppress(ValueError):  # forwards without a signature
        signature = inspect.signature(model.forward)
        try:
            signature.bind(*example.args, **example.kwargs)
        except TypeError as error:
            names = ", ".join(f"{name}=" for name in example.kwargs)
            raise TraceError(
                f"{type(model).__name__}.forward takes ({', '.join(signature.parameters)}), the "
                f"example holds {names or f'{len(example.args)} tensor(s)'}; give an example with "
                "one tensor for each argument, or a dict with their names"
            ) from error


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    user_frames = [frame for frame in frames if not in_torch(frame.filename)]
    if not user_frames:
        return ""
    last = user_frames[-1]
    code = linecache.getline(last.filename, last.lineno or 0).strip()
    text = f" ({code})" if code else ""
    return f" at {Path(last.filename).name}:{last.lineno}{text}"
