"""Which runs of a network are recorded: eval mode, and whatever else its forward may do."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from prunekit.errors import TraceError
from prunekit.graph.arguments import Arguments
from prunekit.graph.lines import in_torch
from prunekit.graph.origins import Unseen
from prunekit.graph.recorder import Recorder
from prunekit.graph.steps import Recording
from prunekit.graph.twin import Mode, first_line, set_mode, twin_of

# shapes alone where that is enough, then numbers, then numbers with sizes that are not followed
_WAYS = ((False, True), (True, True), (True, False))


def record(model: nn.Module, example: Arguments) -> list[Recording]:
    """The run of a network in eval mode, and those that differ from it in what is called on what.

    The others are train mode and gradients, each where the forward asks for it. Raises TraceError
    where eval mode fails; what fails elsewhere is recorded up to there.
    """
    _check_signature(model, example)
    example = example.one()
    Mode.asked = False
    first, way = _first(model, example)
    found = [first.recording]
    for training, grad in _others(first):
        again = _run(model, example, way, training=training, grad=grad)
        if not any(again.recording.alike(one) for one in found):
            found.append(again.recording)
    return found


def record_eval(model: nn.Module, example: Arguments) -> Recording:
    """The run in eval mode alone."""
    _check_signature(model, example)
    return _first(model, example.one())[0].recording


def _first(model: nn.Module, example: Arguments) -> tuple[Recorder, tuple[bool, bool]]:
    for way in _WAYS:
        recorder = _run(model, example, way)
        if recorder.recording.failed is None:
            return recorder, way
    name, failed = type(model).__name__, recorder.recording.failed
    raise TraceError(f"{name} {failed}") from recorder.error


def _others(first: Recorder) -> Iterator[tuple[bool, bool]]:
    if Mode.asked:
        yield True, False
    if "grad" in first.asked:
        yield False, True


def _run(
    model: nn.Module,
    example: Arguments,
    way: tuple[bool, bool],
    training: bool = False,
    grad: bool = False,
    mode: type[int] = Mode,
) -> Recorder:
    """A run of a fresh copy; where it fails, `failed` of the recording says how."""
    numbers, sizes = way
    twin = twin_of(model, numbers)
    set_mode(twin, mode(training))
    given = example.changed(lambda x: x.detach().clone()) if numbers else example.shapes()
    recorder = Recorder(twin, sizes)
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(grad):
        try:
            recorder.run(given.args, dict(given.kwargs))
        except Exception as error:
            if mode is Mode and "not Mode" in str(error):  # a function that insists on a bool
                Mode.asked = True
                return _run(model, example, way, training, grad, bool)
            recorder.fail(_told(error, recorder, example), error)
    return recorder


def _told(error: Exception, recorder: Recorder, example: Arguments) -> str:
    """What failed and where, behind the name of the network."""
    if isinstance(error, Unseen):
        return f"cannot be traced{_place(error)}: {first_line(error)}"
    at = f" at {recorder.trying}" if recorder.trying else _place(error)
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
            count = len(example.args) + len(example.kwargs)
            raise TraceError(
                f"{type(model).__name__}.forward takes ({', '.join(signature.parameters)}), the "
                f"example holds {count} tensor(s); give an example with one tensor for each "
                "argument"
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
