"""The stage that trains the narrow network without a penalty."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir, dense_file, model_file
from prunekit.schema import Checked, Positive, Share
from prunekit.solvers import KeepZeros, Solver
from prunekit.stages.network import (
    check_fits,
    count_outputs,
    load_source,
    measure_accuracy,
    measure_size,
)
from prunekit.stages.settings import KeepZeroEntries, Runtime
from prunekit.stages.stage import FromSettings, Stage, history_writer
from prunekit.surgery import Head, NewHead, save_model
from prunekit.targets import Entries
from prunekit.training import Distillation, Schedule, evaluate, fit


@dataclass(frozen=True)
class Distill(Checked):
    """The teacher of fine-tuning, and how strongly the trained network follows its logits.

    `teacher` is a model file, a stage or a run. None stands for the dense network that the trained
    one came from, which is found by following the sources of stages.
    """

    weight: Annotated[Share, "weight of the teacher's logits in the loss"] = 0.4
    temperature: Annotated[Positive, "both logits are divided by it"] = 4.0
    teacher: Annotated[
        str | None, "model file, stage or run; null: the dense network this one came from"
    ] = None

    def file(self, source: Path) -> Path:
        """Return the teacher's model file for a network that starts from `source`.

        ArtifactError where there is none.
        """
        if self.teacher is None:
            return dense_file(source)
        return model_file(self.teacher, "distill.teacher")

    def check(self, run: Path) -> None:
        """Raise ArtifactError for a teacher that is absent and is no stage of this run."""
        if self.teacher is None:
            return
        path = Path(self.teacher).resolve()
        if run.resolve() not in (path, *path.parents):
            model_file(self.teacher, "distill.teacher")

    def loss(self, teacher: nn.Module, smoothing: float) -> Distillation:
        """Return the loss of fine-tuning; `smoothing` is the label smoothing of the schedule."""
        return Distillation(teacher, self.weight, self.temperature, smoothing)


@dataclass(frozen=True)
class Finetune(Stage):
    """Trains the narrow network without a penalty.

    With `keep_zeros`, weights that are exactly zero stay zero. With `distill`, the logits of a
    teacher count beside the labels. With a `head`, a new classifier replaces the old one first.
    """

    name = "finetune"
    schedule: Annotated[Schedule, FromSettings("schedule.finetune")]
    keep_zeros: KeepZeroEntries
    distill: Annotated[Distill | None, "the teacher and its weight"]
    head: Annotated[Head | None, "the new classifier"]

    def check(self, run: Path) -> None:
        """Raise ArtifactError where the settings name a teacher that does not exist."""
        if self.distill is not None:
            self.distill.check(run)

    def teacher_file(self, source: Path | None) -> Path | None:
        """Return the model file of the teacher, or None without distillation."""
        if self.distill is None or source is None:
            return None
        return self.distill.file(source)

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Train all weights and write the model file."""
        saved = load_source(stage_dir.source, runtime)
        model = saved.model
        data = self.data(runtime)
        edit = _replace_head(model, data, self.head)
        distillation = self._distillation(stage_dir, data, runtime)
        fit(
            model,
            data,
            self.schedule,
            solver=_zero_keeper(model, data, runtime) if self.keep_zeros else None,
            params=_parameter_groups(model, self.head, edit),
            loss=distillation,
            seed=self.seed,
            device=runtime.device,
            checkpoint=stage_dir.checkpoint,
            label="finetune",
            on_epoch=history_writer(stage_dir),
        )
        edits = [*saved.edits, *filter(None, [edit])]
        save_model(stage_dir.path / "model.pt", model, saved.arch, edits)
        teacher, notes = _teacher_results(distillation, stage_dir, data, runtime)
        metrics = {**measure_accuracy(model, data, runtime), **measure_size(model, data), **teacher}
        return Outcome(metrics, (*data.notes, *([str(edit)] if edit else []), *notes))

    def _distillation(
        self, stage_dir: StageDir, data: Data, runtime: Runtime
    ) -> Distillation | None:
        """Return the loss with the teacher in it; ConfigError where it does not fit the images."""
        file = stage_dir.teacher
        if self.distill is None or file is None:
            return None
        saved, path = load_source(file, runtime), os.path.relpath(file)
        if self.distill.teacher is None and saved.edits:
            raise ConfigError(
                f"{path}, which this network came from, was changed before ({len(saved.edits)} "
                "edits): no dense network is known; give distill.teacher=path/to/model.pt"
            )
        try:
            check_fits(saved.model, data)
        except ConfigError as error:
            reason = str(error).rpartition("; ")[0]
            raise ConfigError(
                f"{path} cannot teach: {reason}; give distill.teacher=path of a network for these "
                "images and classes"
            ) from error
        return self.distill.loss(saved.model, self.schedule.label_smoothing)


def _replace_head(model: nn.Module, data: Data, head: Head | None) -> NewHead | None:
    """Put the new classifier in place and return the edit; None where the old one stays.

    ConfigError where the network does not fit the data.
    """
    edit = None
    if head is not None:
        count_outputs(model, data)  # raises for images that the network cannot take
        edit = head.edit(model, data.example, data.classes)
        edit.apply(model)
    check_fits(model, data, "head=linear gives it a new last layer for {}")
    return edit


def _parameter_groups(
    model: nn.Module, head: Head | None, edit: NewHead | None
) -> list[dict[str, Any]] | None:
    """Return parameter groups that give a new layer its own learning rate; None without one."""
    if head is None or edit is None:
        return None
    new = [*model.get_submodule(edit.last).parameters()]
    new_ids = {id(param) for param in new}
    other = [param for param in model.parameters() if id(param) not in new_ids]
    groups: list[dict[str, Any]] = [{"params": other}, {"params": new, "lr_scale": head.rate}]
    return [group for group in groups if group["params"]]


def _zero_keeper(model: nn.Module, data: Data, runtime: Runtime) -> Solver:
    """Return a solver without a penalty that keeps zero weights at zero."""
    graph = ChannelGraph.trace(model, data.example.to(runtime.device))
    solver = KeepZeros()
    solver.bind(L1(0.0), Entries().rows(model, graph))
    return solver


def _teacher_results(
    distillation: Distillation | None, stage_dir: StageDir, data: Data, runtime: Runtime
) -> tuple[Metrics, tuple[str, ...]]:
    """Return the test accuracy of the teacher, and a note that names its file."""
    if distillation is None or stage_dir.teacher is None:
        return {}, ()
    path = os.path.relpath(stage_dir.teacher)
    if not data.test.size:
        return {}, (f"distilled from {path}",)
    top1 = evaluate(distillation.teacher, data.test, runtime.device)["top1"]
    return {"teacher_top1": round(top1, 4)}, (f"distilled from {path} (top-1 {top1:.2f} %)",)
