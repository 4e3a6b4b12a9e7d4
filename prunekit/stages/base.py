"""What a stage is, and how one is run: compare, skip or work, report."""

from __future__ import annotations

import importlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from prunekit.build import build
from prunekit.checks import choice, instance, integer
from prunekit.errors import ConfigError
from prunekit.runs.digests import verified
from prunekit.runs.pool import Pool, adopt
from prunekit.runs.report import Outcome, Report
from prunekit.runs.rundir import LOOKING, RunDir, StageDir, Status, identity_of, model_file
from prunekit.runs.tracking import Tracker
from prunekit.selection import Sensitivity, curves_file
from prunekit.stages.teacher import distill_of

log = logging.getLogger(__name__)
Settings = Mapping[str, Any]
# where data lies is no part of what a run is
PLACES = frozenset({"dataset.root", "dataset.download", "source", "distill.teacher"})


@dataclass(frozen=True)
class Runtime:
    """The machine's side of a run, never part of its identity.

    `device` is a torch device or `auto`; `threads` 0 leaves the choice to torch. `trust` lists
    dotted paths of your own model classes that model files may name.
    """

    device: str = "auto"
    threads: int = 0
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        integer("runtime.threads", self.threads, at_least=0)
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")
        kind = str(self.device).split(":")[0]
        choice("runtime.device", kind, ("cpu", "cuda"))
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError("runtime.device=cuda, but torch sees no GPU; use runtime.device=cpu")

    def apply(self, seed: int) -> None:
        """Set threads and all global random states; denormals are flushed, they slow CPUs."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        random.seed(seed)
        torch.manual_seed(seed)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline; `reads` names the settings it may see, which are its identity.

    A stage that reads `without_source` can build its model itself, from these settings, where no
    earlier stage has left one.
    """

    name: str
    reads: tuple[str, ...]
    needs_source: bool
    without_source: tuple[str, ...] = ()

    def work(self, settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
        """Do the work; imported late, so that the command line starts fast."""
        module = importlib.import_module(f"prunekit.stages.{self.name}")
        function: Callable[[Settings, StageDir, Runtime], Outcome] = getattr(module, self.name)
        return function(settings, stage, runtime)


class Made(Enum):
    """When a stage was computed."""

    NOW = "now"
    BEFORE = "finished before"
    ELSEWHERE = "shared with another run"


def execute(
    stage: Stage,
    settings: Settings,
    run: RunDir,
    source: str | None = None,
    pool: Pool | None = None,
) -> tuple[Report, Made]:
    """Run one stage in a run directory; returns its report and when that was made.

    With a `pool`, a stage that leaves a model and was not begun here is computed there, once for
    all who share it. `settings.command` is kept in the report and no part of what the stage is.
    Raises ArtifactError when the directory holds the stage with other settings.
    """
    place = run.stage(stage.name)
    start = _source(stage, run, source)
    chosen = select(settings, (*stage.reads, *(stage.without_source if start is None else ())))
    files = {"source": start, "teacher": _teacher(chosen, start)}
    curves = _curves(chosen, run)
    read = {key: file for key, file in {**files, "curves": curves}.items() if file is not None}
    identity = {**_identity(chosen), "source": None, **{k: identity_of(f) for k, f in read.items()}}
    told = [note for file in read.values() for note in verified(file)]
    anew = bool(settings.get("overwrite", False))
    status = place.begin(identity, **files, overwrite=anew)
    if status is Status.DONE:
        return place.report(), Made.BEFORE

    command = settings.get("command")

    def work(there: StageDir) -> Report:
        runtime = build(settings["runtime"], "runtime")
        runtime.apply(integer("seed", settings["seed"], at_least=0))
        runtime = replace(runtime, trust=(*runtime.trust, settings["model"]["_target_"]))
        there.tell(tracking_of(settings))
        with _listening(there.warn):
            for note in told:
                log.warning(note)
            outcome = stage.work(chosen, there, runtime)
            return there.complete(replace(outcome, command=command))

    if pool is None or anew or status is Status.RESUME or stage.name in LOOKING:
        with _nothing_left(place):
            return work(place), Made.NOW
    with pool.stage(stage.name, place.identity) as shared, _nothing_left(shared, place):
        todo = shared.begin(identity, **files) is not Status.DONE
        if todo:
            work(shared)
        adopt(shared, place, command)
    return place.report(), Made.NOW if todo else Made.ELSEWHERE


@contextmanager
def _nothing_left(*places: StageDir) -> Iterator[None]:
    """A start that fails before there is any work leaves the directories as they were."""
    try:
        yield
    except BaseException:
        if not any(place.started for place in places):
            for place in places:
                place.abandon()
        raise


def tracking_of(settings: Settings) -> Tracker | None:
    """What else takes the numbers of stages, None for `tracking=none`; no part of what they are.

    ConfigError where its package is not installed.
    """
    if "_target_" not in settings["tracking"]:
        return None
    made = build(settings["tracking"], "tracking")
    instance("tracking", made, Tracker)
    made.require()
    return made


@contextmanager
def _listening(note: Callable[[str], None]) -> Iterator[None]:
    """Inside it, what prunekit logs as a warning is noted too: reports must tell it."""
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: note(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("prunekit")
    log.addHandler(listener)
    try:
        yield
    finally:
        log.removeHandler(listener)


def select(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    """The nodes at dotted keys, nested as they were; an absent one raises ConfigError."""
    chosen: dict[str, Any] = {}
    for key in keys:
        node: Any = settings
        into = chosen
        *parents, last = key.split(".")
        for part in parents:
            node, into = node[part], into.setdefault(part, {})
        if last not in node:
            raise ConfigError(f"the setting {key} is missing")
        into[last] = node[last]
    return chosen


def _identity(chosen: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What a run is: everything the stage reads, except where things lie."""
    kept = {key: node for key, node in chosen.items() if f"{prefix}{key}" not in PLACES}
    return {
        key: _identity(node, f"{prefix}{key}.") if isinstance(node, Mapping) else node
        for key, node in kept.items()
    }


def _teacher(chosen: Settings, source: Path | None) -> Path | None:
    """The file of the network that teaches, where the stage has one."""
    found = distill_of(chosen) if "distill" in chosen else None
    return None if found is None or source is None else found.file(source)


def _curves(chosen: Settings, run: RunDir) -> Path | None:
    """The file of sensitivity curves, where the stage selects by them."""
    selection = build(chosen["selection"], "selection") if "selection" in chosen else None
    if not isinstance(selection, Sensitivity):
        return None
    return curves_file(selection.path or run.stage("sensitivity").path)


def _source(stage: Stage, run: RunDir, source: str | None) -> Path | None:
    if not stage.needs_source:
        if source is not None:
            raise ConfigError(
                f"source={source}, but {stage.name} starts from no model of prunekit; give "
                "weights=..., or start later: pipeline=[sparsify,prune,finetune,measure]"
            )
        return None
    if source is not None:
        return model_file(source)
    if stage.without_source and not run.has_source(stage.name):
        return None
    return run.find_source(stage.name)
