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
from prunekit.graph.recording.attributes import attributes_heard
from prunekit.graph.recording.branches import Sides
from prunekit.graph.recording.circumstances import Circumstances, Taken, other_flags
from prunekit.graph.recording.lines import in_torch
from prunekit.graph.recording.origins import Unseen
from prunekit.graph.recording.recorder import Recorder
from prunekit.graph.recording.steps import Recording
from prunekit.graph.recording.twin import first_line, set_mode, twin_of
from prunekit.modes import random_states_kept

# shapes alone where that is enough, then numbers, then numbers with sizes that are not followed
_WAYS = ((False, True), (True, True), (True, False))


def record(model: nn.Module, example: Arguments) -> list[Recording]:
    """The run of a network in eval mode, and those that differ from it in what is called on what.

    Raises TraceError where eval mode fails.
    """
    return [one.recording for one in take(model, example)]


def record_eval(model: nn.Module, example: Arguments) -> Recording:
    """The run in eval mode alone."""
    _check_signature(model, example)
    return _first(model, example.one()).recording


def take(model: nn.Module, example: Arguments) -> list[Taken]:
    """All runs that differ in what is called on what, the one in eval mode first.

    The others are train mode and gradients, flags and other sizes of the inputs, each where the
    forward may depend on it. What fails in train mode is recorded up to there; where a flag or a
    size makes the network fail, it does not take that.
    """
    _check_signature(model, example)
    example = example.one()
    first = _first(model, example)
    found = [first]
    for other in _modes(first):
        _include(found, run(model, other))
    for under, changed in other_flags(model, example):
        again = _tried(model, replace(first.at, example=changed, under=under))
        if again.works:
            _include(found, again)
    for again in Sides(first, partial(_tried, model)).runs():
        _include(found, again)
    return found


def run(model: nn.Module, at: Circumstances) -> Taken:
    """A run of a fresh copy of a network; where it fails, `failed` of the recording says how."""
    return run_twin(twin_of(model, at.numbers), at)


def run_twin(twin: nn.Module, at: Circumstances) -> Taken:
    """The same for a copy that was made before, which is used up."""
    set_mode(twin, at.training)
    given = at.example.changed(lambda x: x.detach().clone()) if at.numbers else at.example.shapes()
    recorder = Recorder(twin, at.sizes)
    with (
        random_states_kept(),
        torch.set_grad_enabled(at.grad),
        attributes_heard(recorder.width_read, recorder.mode_read),
    ):
        try:
            recorder.run(given.args, dict(given.kwargs))
        except Exception as error:
            recorder.fail(_told(error, recorder, at.example), error)
    recorder.recording.under = at.under
    kept = twin if recorder.left_alone and not at.numbers else None
    return Taken(kept, recorder.recording, at, recorder.asked, recorder.error)


def _include(found: list[Taken], again: Taken) -> None:
    if not any(again.recording.alike(one.recording) for one in found):
        found.append(again)


def _first(model: nn.Module, example: Arguments) -> Taken:
    taken = next(
        one
        for numbers, sizes in _WAYS
        if (one := run(model, Circumstances(example, numbers, sizes))).works or not sizes
    )
    if taken.works:
        return taken
    raise TraceError(f"{type(model).__name__} {taken.recording.failed}") from taken.error


def _modes(first: Taken) -> Iterator[Circumstances]:
    if "training" in first.asked:
        yield replace(first.at, training=True, under="train mode")
    if "grad" in first.asked:
        yield replace(first.at, grad=True, under="gradients")


def _tried(model: nn.Module, at: Circumstances) -> Taken:
    """A run with numbers where shapes are not enough for it."""
    taken = run(model, at)
    for numbers, sizes in _WAYS[1:]:
        if taken.works or not _needs_numbers(taken.error):
            break
        taken = run(model, replace(at, numbers=numbers, sizes=sizes))
    return taken


def _needs_numbers(error: Exception | None) -> bool:
    """Whether a run failed for being recorded, not for what it was given."""
    known = isinstance(error, Unseen | NotImplementedError | TypeError)
    return known or "meta" in str(error).lower()


def _told(error: Exception, recorder: Recorder, example: Arguments) -> str:
    """What failed and where, behind the name of the network."""
    if isinstance(error, Unseen):
        return f"cannot be traced{_place(error)}: {first_line(error)}"
    at = recorder.trying(_place(error))
    return f"fails on an example of shape {example}{at}: {first_line(error)}"


def _check_signature(model: nn.Module, example: Arguments) -> None:
    """Raise TraceError where the example does not fit the arguments of the forward."""
    if not isinstance(model, nn.Module):
        twin_of(model)
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
