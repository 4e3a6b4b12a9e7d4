"""Train the narrow network without a penalty."""

from __future__ import annotations

import os

from torch import nn

from prunekit.build import build
from prunekit.checks import choice
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import Hold, Solver
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.head import head_of, paced, with_head
from prunekit.stages.parts import (
    check_fits,
    counts,
    history_writer,
    load_data,
    load_source,
    quality,
)
from prunekit.stages.teacher import distill_of
from prunekit.surgery import save_model
from prunekit.targets import Entries
from prunekit.training import Distillation, evaluate, fit


def finetune(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Tune all weights; with `keep_zeros`, entries that are exactly zero stay zero.

    With `distill`, the logits of a teacher count beside the labels. With a `head`, a new
    classifier is put in place first.
    """
    choice("keep_zeros", settings["keep_zeros"], (True, False))
    schedule = build(settings["schedule"]["finetune"], "schedule.finetune")
    saved = load_source(stage.source, runtime)
    model = saved.model
    data = load_data(settings, runtime)
    head = head_of(settings)
    edit = with_head(model, data, head)
    lesson = _lesson(settings, stage, data, runtime, schedule.label_smoothing)
    fit(
        model,
        data,
        schedule,
        solver=_held(model, data, runtime) if settings["keep_zeros"] else None,
        params=paced(model, head, edit),
        loss=lesson,
        seed=settings["seed"],
        device=runtime.device,
        checkpoint=stage.checkpoint,
        label="finetune",
        on_epoch=history_writer(stage),
    )
    edits = [*saved.edits, *filter(None, [edit])]
    save_model(stage.path / "model.pt", model, saved.arch, edits)
    taught, notes = _of_teacher(lesson, stage, data, runtime)
    found = {**quality(model, data, runtime), **counts(model, data), **taught}
    return Outcome(found, (*data.notes, *([str(edit)] if edit else []), *notes))


def _lesson(
    settings: Settings, stage: StageDir, data: Data, runtime: Runtime, smoothing: float
) -> Distillation | None:
    """The loss with the teacher in it; ConfigError where that is none for these images."""
    distill, file = distill_of(settings), stage.teacher
    if distill is None or file is None:
        return None
    saved, place = load_source(file, runtime), os.path.relpath(file)
    if distill.teacher is None and saved.edits:
        raise ConfigError(
            f"{place}, which this network came from, was changed before ({len(saved.edits)} "
            "edits): no dense network is known; give distill.teacher=path/to/model.pt"
        )
    try:
        check_fits(saved.model, data)
    except ConfigError as error:
        reason = str(error).rpartition("; ")[0]
        raise ConfigError(
            f"{place} cannot teach: {reason}; give distill.teacher=path of a network for these "
            "images and classes"
        ) from error
    return distill.loss(saved.model, smoothing)


def _of_teacher(
    lesson: Distillation | None, stage: StageDir, data: Data, runtime: Runtime
) -> tuple[Metrics, tuple[str, ...]]:
    """How good the teacher is on the test images, and where it lies."""
    if lesson is None or stage.teacher is None:
        return {}, ()
    place = os.path.relpath(stage.teacher)
    if not data.test.size:
        return {}, (f"distilled from {place}",)
    top1 = evaluate(lesson.teacher, data.test, runtime.device)["top1"]
    return {"teacher_top1": round(top1, 4)}, (f"distilled from {place} (top-1 {top1:.2f} %)",)


def _held(model: nn.Module, data: Data, runtime: Runtime) -> Solver:
    graph = ChannelGraph.trace(model, data.example.to(runtime.device))
    solver = Hold()
    solver.bind(L1(0.0), Entries().rows(model, graph))
    return solver
