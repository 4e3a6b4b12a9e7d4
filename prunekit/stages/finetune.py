"""Train the narrow network without a penalty."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import nn

from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.solvers import KeepZeros, Solver
from prunekit.stages.common import check_fits, counts, history_writer, load_source, quality
from prunekit.stages.head import paced, with_head
from prunekit.stages.root import KeepZeroEntries
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Read, Stage
from prunekit.stages.teacher import Distill
from prunekit.surgery import Head, save_model
from prunekit.targets import Entries
from prunekit.training import Distillation, Schedule, evaluate, fit


@dataclass(frozen=True)
class Finetune(Stage):
    """Train the narrow network without a penalty.

    With `keep_zeros`, entries that are exactly zero stay zero. With `distill`, the logits of a
    teacher count beside the labels. With a `head`, a new classifier is put in place first.
    """

    name = "finetune"
    schedule: Annotated[Schedule, Read("schedule.finetune")]
    keep_zeros: KeepZeroEntries
    distill: Annotated[Distill | None, "how much a teacher counts"]
    head: Annotated[Head | None, "the classifier that is put in place first"]

    def check(self, run: Path) -> None:
        """A teacher that is named must be there, unless this run can leave it."""
        if self.distill is not None:
            self.distill.check(run)

    def teacher(self, source: Path | None) -> Path | None:
        """The model file of the teacher, where one teaches."""
        if self.distill is None or source is None:
            return None
        return self.distill.file(source)

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Tune all weights."""
        saved = load_source(place.source, runtime)
        model = saved.model
        data = self.data(runtime)
        edit = with_head(model, data, self.head)
        lesson = self._lesson(place, data, runtime)
        fit(
            model,
            data,
            self.schedule,
            solver=_held(model, data, runtime) if self.keep_zeros else None,
            params=paced(model, self.head, edit),
            loss=lesson,
            seed=self.seed,
            device=runtime.device,
            checkpoint=place.checkpoint,
            label="finetune",
            on_epoch=history_writer(place),
        )
        edits = [*saved.edits, *filter(None, [edit])]
        save_model(place.path / "model.pt", model, saved.arch, edits)
        taught, notes = _of_teacher(lesson, place, data, runtime)
        found = {**quality(model, data, runtime), **counts(model, data), **taught}
        return Outcome(found, (*data.notes, *([str(edit)] if edit else []), *notes))

    def _lesson(self, place: StageDir, data: Data, runtime: Runtime) -> Distillation | None:
        """The loss with the teacher in it; ConfigError where that is none for these images."""
        file = place.teacher
        if self.distill is None or file is None:
            return None
        saved, where = load_source(file, runtime), os.path.relpath(file)
        if self.distill.teacher is None and saved.edits:
            raise ConfigError(
                f"{where}, which this network came from, was changed before ({len(saved.edits)} "
                "edits): no dense network is known; give distill.teacher=path/to/model.pt"
            )
        try:
            check_fits(saved.model, data)
        except ConfigError as error:
            reason = str(error).rpartition("; ")[0]
            raise ConfigError(
                f"{where} cannot teach: {reason}; give distill.teacher=path of a network for these "
                "images and classes"
            ) from error
        return self.distill.loss(saved.model, self.schedule.label_smoothing)


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
    solver = KeepZeros()
    solver.bind(L1(0.0), Entries().rows(model, graph))
    return solver
