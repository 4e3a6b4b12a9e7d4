"""How a stage is run: compare with what is there, skip or work, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from prunekit.build import build
from prunekit.criteria import Criterion
from prunekit.errors import ConfigError
from prunekit.runs.digests import verified
from prunekit.runs.report import Report
from prunekit.runs.rundir import LOOKING, RunDir, StageDir, Status, model_file
from prunekit.runs.stage_cache import StageCache, adopt
from prunekit.runs.tracking import Tracker
from prunekit.selection import Selection
from prunekit.stages.identity import Start, identity
from prunekit.stages.root import Root
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Settings, Stage, described
from prunekit.validate import instance

log = logging.getLogger(__name__)


class Made(Enum):
    """When a stage was computed."""

    NOW = "now"
    BEFORE = "finished before"
    ELSEWHERE = "shared with another run"


@dataclass(frozen=True)
class Request:
    """What a command asks for besides its stages.

    `settings` is the composed description of all parts: what a stage is is quoted from it.
    `command` is the line that was typed.
    """

    settings: Settings
    root: Root
    runtime: Runtime
    tracker: Tracker | None
    command: str | None

    @classmethod
    def of(cls, settings: Settings) -> Request:
        """Read it from the settings; raises ConfigError."""
        runtime: Runtime = build(settings["runtime"], "runtime", Runtime)
        return cls(
            settings=settings,
            runtime=replace(runtime, trust=(*runtime.trust, settings["model"]["_target_"])),
            root=Root.of(settings),
            tracker=tracking_of(settings),
            command=settings.get("command"),
        )


def execute(
    stage: Stage,
    request: Request,
    run: RunDir,
    source: str | None = None,
    pool: StageCache | None = None,
) -> tuple[Report, Made]:
    """Run one stage in a run directory; returns its report and when that was made.

    With a `pool`, a stage that leaves a model and was not begun here is computed there, once for
    all who share it. Neither network nor images are loaded for a stage that is finished.
    Raises ArtifactError when the directory holds the stage with other settings.
    """
    place = run.stage(stage.name)
    start = _source(stage, run, source)
    stage, teacher = stage.within(run.path, start), stage.teacher(start)
    runtime, command = request.runtime, request.command
    models = {
        name: run.stage(name).path / "model.pt"
        for name in stage.compares
        if run.stage(name).finished
    }
    read = _read(stage, start, teacher, *models.values())
    edited = [note for file in read for note in verified(file)]
    begun = Start(start, teacher, run.path, models, runtime.trust, runtime.kind)
    known = identity(stage, described(request.settings, stage.reads(start is not None)), begun)
    status = place.begin(known, source=start, teacher=teacher, overwrite=request.root.overwrite)
    if status is Status.DONE:
        return place.report(), Made.BEFORE

    def work(there: StageDir) -> Report:
        runtime.apply(stage.seed)
        there.tell(request.tracker)
        with _listening(there.warn):
            for note in edited:
                log.warning(note)
            outcome = stage.work(there, runtime)
            return there.complete(replace(outcome, command=command))

    if pool is None or request.root.overwrite or status is Status.RESUME or stage.name in LOOKING:
        with _nothing_left(place):
            return work(place), Made.NOW
    with pool.stage(stage.name, place.identity) as shared, _nothing_left(shared, place):
        todo = shared.begin(known, source=start, teacher=teacher) is not Status.DONE
        if todo:
            work(shared)
        adopt(shared, place, command)
    return place.report(), Made.NOW if todo else Made.ELSEWHERE


def _read(stage: Stage, *files: Path | None) -> list[Path]:
    """Every file of an earlier stage that this one reads."""
    parts = [part for part in vars(stage).values() if isinstance(part, Criterion | Selection)]
    return [file for file in files if file is not None] + [
        file for part in parts for file in part.files().values()
    ]


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
    if stage.starts_anywhere() and not run.has_source(stage.name):
        return None
    return run.find_source(stage.name)
