"""Run stages: compare each with what its directory holds, skip it or do its work, report."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from prunekit.build import Settings, build
from prunekit.console import say
from prunekit.criteria import Criterion
from prunekit.errors import ConfigError, one_of
from prunekit.runs.files import verify
from prunekit.runs.layout import READ_ONLY_STAGES, STAGES
from prunekit.runs.report import Metrics, Report
from prunekit.runs.rundir import RunDir, StageDir, StageStatus, model_file
from prunekit.runs.stage_cache import StageCache, link_stage
from prunekit.runs.tracking import Tracker
from prunekit.selection import Selection
from prunekit.stages.identity import StageInputs, identify
from prunekit.stages.settings import Root, Runtime
from prunekit.stages.stage import Stage, select_settings
from prunekit.validate import instance

log = logging.getLogger(__name__)

DEFAULT = ("val_top1",)
Objectives = float | tuple[float, ...]
OnStage = Callable[[str, Metrics | None], None]  # gets the name of a stage; metrics at its end


class StageResult(Enum):
    """Says when the result of a stage was computed."""

    COMPUTED = "now"
    CACHED = "finished before"
    SHARED = "shared with another run"


@dataclass(frozen=True)
class Request:
    """Everything that a command asks for besides its stages.

    `settings` are the composed settings, from which the identity of a stage is taken. `command` is
    the line that was typed.
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
            runtime=replace(runtime, trust=(*runtime.trust, str(settings["model"]["_target_"]))),
            root=Root.of(settings),
            tracker=build_tracker(settings),
            command=settings.get("command"),
        )


def build_tracker(settings: Settings) -> Tracker | None:
    """Return the tracker that also receives the metrics of stages; None for `tracking=none`.

    It is no part of the identity of a stage. ConfigError where its package is not installed.
    """
    if "_target_" not in settings["tracking"]:
        return None
    tracker = build(settings["tracking"], "tracking")
    instance("tracking", tracker, Tracker)
    tracker.require()
    return tracker


def find_stage_class(name: str) -> type[Stage]:
    """Return the class of a stage; its module is imported here, so that commands start fast."""
    module = importlib.import_module(f"prunekit.stages.{name}")
    # on Python 3.10 aliases such as Mapping[str, int] count as types, which issubclass refuses
    classes = [c for c in vars(module).values() if Stage in getattr(c, "__mro__", ())]
    (stage,) = [c for c in classes if vars(c).get("name") == name]
    return stage


def build_stages(settings: Settings, names: Sequence[str]) -> list[Stage]:
    """Build every stage with all of its parts, so that a mistake shows before any work."""
    return [find_stage_class(name).of(settings) for name in names]


def check_constant_parts(settings: Settings, command: str, swept: Collection[str]) -> None:
    """Build the parts of a command's stages that the `swept` settings do not change.

    A mistake in them, which all jobs of a sweep share, thus shows once and before any job.
    """
    if "pipeline" in swept or command not in (*STAGES, "run"):
        return
    for name in stage_names(settings) if command == "run" else (command,):
        find_stage_class(name).check_constant(settings, swept)


def stage_names(settings: Settings) -> tuple[str, ...]:
    """Return the stages that `run` goes through; sparsify is left out without a penalty."""
    names = settings["pipeline"]
    if not isinstance(names, list) or not names:
        raise ConfigError(
            f"pipeline={names!r} is no list of stages; write some of [{','.join(STAGES)}]"
        )
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"pipeline names {name!r}, which is no stage; {one_of(name, STAGES)}")
    skipped = {"sparsify"} if settings["regularizer"]["name"] == "none" else set()
    return tuple(name for name in STAGES if name in names and name not in skipped)


def _ignore(name: str, metrics: Metrics | None) -> None:
    """Do nothing: the default of `on_stage`."""


def run_stage(
    settings: Settings,
    directory: str,
    cache: StageCache | None = None,
    on_stage: OnStage = _ignore,
) -> Objectives:
    """Run the stage that `settings.stage` names; return the objectives, for sweepers."""
    run_dir = RunDir(Path(directory).parent)
    return _run_stages((settings["stage"],), settings, run_dir, cache, on_stage)


def run(
    settings: Settings,
    directory: str,
    cache: StageCache | None = None,
    on_stage: OnStage = _ignore,
) -> Objectives:
    """Run the pipeline in one run directory and print the comparison; return the objectives."""
    run_dir = RunDir(Path(directory).parent)
    return _run_stages(stage_names(settings), settings, run_dir, cache, on_stage)


def _run_stages(
    names: tuple[str, ...],
    settings: Settings,
    run_dir: RunDir,
    cache: StageCache | None,
    on_stage: OnStage,
) -> Objectives:
    """Run the stages one after the other, and call `on_stage` before and after each.

    A job of a sweep, which has a cache, waits for a run directory that another process works in,
    such as one of a sweep that was just killed.
    """
    request, stages = Request.of(settings), build_stages(settings, names)
    for stage in stages:
        stage.check(run_dir.path)
    if "pretrain" in names and not run_dir.stage("pretrain").finished:
        for stage in stages:
            stage.check_network()
    source = request.root.source
    with run_dir.lock(wait=cache is not None):
        for stage in stages:
            on_stage(stage.name, None)
            report, result = execute(stage, request, run_dir, source, cache)
            on_stage(stage.name, report.metrics)
            _announce(run_dir, report, result)
            if stage.name not in READ_ONLY_STAGES:
                source = None  # later stages start from the model that this one left
    for stage in stages:
        stage.show(run_dir.stage(stage.name))
    return _objective_values(report, tuple(request.root.objectives))


def _objective_values(report: Report, names: tuple[str, ...]) -> Objectives:
    """Return these metrics of the last stage, nan for an absent one; a single one as a number."""
    for name in names:
        if name not in report.metrics and names != DEFAULT:
            raise ConfigError(
                f"objectives names {name!r}, which {report.stage} does not report; "
                f"{one_of(name, report.metrics)}"
            )
    metrics = [report.metrics.get(name) for name in names]
    values = [float(m) if isinstance(m, int | float) else math.nan for m in metrics]
    return values[0] if len(values) == 1 else tuple(values)


def _announce(run_dir: RunDir, report: Report, result: StageResult) -> None:
    metrics = report.metrics
    measured = (k for k in ("top1", "val_top1") if isinstance(metrics.get(k), int | float))
    key = next(measured, None)
    top1 = f"{metrics[key]:6.2f} %" if key else "not measured"
    top1 += " (validation)" if key == "val_top1" else ""
    computed = result is StageResult.COMPUTED
    took = f"{report.seconds:.1f} s" if computed else result.value
    say(
        f"{report.stage:<9} top-1 {top1}  {_count(metrics, 'params'):>12} parameters  "
        f"{_count(metrics, 'macs'):>14} MACs  {took}  "
        f"-> {os.path.relpath(run_dir.path / report.stage)}"
    )
    for note in report.notes if computed else ():
        say(f"          note: {note}")


def _count(metrics: Metrics, key: str) -> str:
    """Return a count as text, also where somebody edited it out of the report."""
    value = metrics.get(key)
    return f"{value:,}" if isinstance(value, int | float) else "unknown"


def execute(
    stage: Stage,
    request: Request,
    run_dir: RunDir,
    source: str | None = None,
    cache: StageCache | None = None,
) -> tuple[Report, StageResult]:
    """Run one stage in a run directory; return its report and when that was computed.

    With a `cache`, a stage that leaves a model and was not started in this directory is computed
    there, once for all runs that share it. A finished stage loads neither network nor images.
    Raises ArtifactError when the directory holds the stage with other settings.
    """
    stage_dir = run_dir.stage(stage.name)
    source_file = _find_source(stage, run_dir, source)
    stage = stage.with_files(run_dir.path, source_file)
    teacher = stage.teacher_file(source_file)
    inputs = _find_inputs(stage, request, run_dir, source_file, teacher)
    warnings = [note for file in _files_read(stage, inputs) for note in verify(file)]
    settings = select_settings(request.settings, stage.reads(source_file is not None))
    identity = identify(stage, settings, inputs)
    status = stage_dir.begin(
        identity, source=source_file, teacher=teacher, overwrite=request.root.overwrite
    )
    if status is StageStatus.DONE:
        return stage_dir.report(), StageResult.CACHED

    def work(directory: StageDir) -> Report:
        request.runtime.apply(stage.seed)
        directory.set_listener(request.tracker)
        with _recorded_warnings(directory.record_warning):
            for warning in warnings:
                log.warning(warning)
            outcome = stage.work(directory, request.runtime)
            return directory.complete(replace(outcome, command=request.command))

    resumed = status is StageStatus.RESUME
    if cache is None or request.root.overwrite or resumed or stage.name in READ_ONLY_STAGES:
        with _abandoned_on_failure(stage_dir):
            return work(stage_dir), StageResult.COMPUTED
    with (
        cache.stage(stage.name, stage_dir.identity) as shared,
        _abandoned_on_failure(shared, stage_dir),
    ):
        todo = shared.begin(identity, source=source_file, teacher=teacher) is not StageStatus.DONE
        if todo:
            work(shared)
        link_stage(shared, stage_dir, request.command)
    return stage_dir.report(), StageResult.COMPUTED if todo else StageResult.SHARED


def _find_source(stage: Stage, run_dir: RunDir, source: str | None) -> Path | None:
    """Return the model file that a stage starts from; None where it builds its network itself."""
    if not stage.needs_source:
        if source is not None:
            raise ConfigError(
                f"source={source}, but {stage.name} starts from no model of prunekit; give "
                "weights=..., or start later: pipeline=[sparsify,prune,finetune,measure]"
            )
        return None
    if source is not None:
        return model_file(source)
    if stage.builds_network() and not run_dir.has_source(stage.name):
        return None
    return run_dir.find_source(stage.name)


def _find_inputs(
    stage: Stage, request: Request, run_dir: RunDir, source: Path | None, teacher: Path | None
) -> StageInputs:
    compared = map(run_dir.stage, stage.compares)
    models = {other.name: other.path / "model.pt" for other in compared if other.finished}
    runtime = request.runtime
    return StageInputs(source, teacher, run_dir.path, models, runtime.trust, runtime.kind)


def _files_read(stage: Stage, inputs: StageInputs) -> list[Path]:
    """Return every file of an earlier stage that this stage reads."""
    parts = [part for part in vars(stage).values() if isinstance(part, Criterion | Selection)]
    models = (inputs.source, inputs.teacher, *inputs.models.values())
    return [
        *(file for file in models if file is not None),
        *(file for part in parts for file in part.files().values()),
    ]


@contextmanager
def _abandoned_on_failure(*directories: StageDir) -> Iterator[None]:
    """Restore the directories when a start fails before any work was done in one of them."""
    try:
        yield
    except BaseException:
        if not any(directory.started for directory in directories):
            for directory in directories:
                directory.abandon()
        raise


@contextmanager
def _recorded_warnings(record: Callable[[str], None]) -> Iterator[None]:
    """Also pass every warning that prunekit logs to `record`, for the report of the stage."""
    handler = _Recorder(record)
    logger = logging.getLogger("prunekit")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Recorder(logging.Handler):
    """A handler that passes the text of warnings to a function."""

    def __init__(self, record: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._record = record

    def emit(self, record: logging.LogRecord) -> None:
        self._record(record.getMessage())
