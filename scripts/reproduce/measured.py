"""Read the figures of finished runs, and compute the columns of tables from them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit.build import build
from prunekit.methods.slimming import slimming_flops
from prunekit.runs.files import read_json
from prunekit.surgery import load_model
from prunekit.training import predictions
from scripts.reproduce.jobs import Job, log_of
from scripts.reproduce.rows import arithmetic

NOT_RUN = "not run"
_SIGNS = ("+", "-", "*", "/")
_FIGURE = re.compile(r"(?:(?P<kind>\w+):)?(?P<stage>[a-z]+)\.(?P<key>.+)")


def metrics(root: Path, run: str, stage: str) -> dict[str, Any] | None:
    """Return the metrics of a finished stage and its seconds, None where it has not finished."""
    file = root / run / stage / "report.json"
    if not file.is_file():
        return None
    report = read_json(file)
    return {"seconds": report.get("seconds"), **report["metrics"]}


@dataclass(frozen=True)
class Measured:
    """The results of the jobs of one row with one seed.

    A figure is named "prune.top1": a stage, and a metric of the last job that has this stage;
    "first:measure.top1" is of the first such job. "finetune.top1|sparsify.top1" is the first of
    both that there is, and "sparsify.epochs" counts the epochs that a stage trained for.
    """

    root: Path
    jobs: tuple[Job, ...]

    def finished(self, stages: Sequence[str] = ()) -> bool:
        """Tell whether those of the stages that jobs have are done; their last one for none."""
        named = [(*stage.split(":")[::-1], "")[:2] for stage in stages]
        jobs = [(stage, job) for stage, kind in named if (job := self._job(stage, kind))]
        jobs = jobs or [(job.stages[-1], job) for job in self.jobs[-1:]]
        return all(metrics(self.root, job.name, stage) for stage, job in jobs)

    def _job(self, stage: str, kind: str = "") -> Job | None:
        order = self.jobs if kind == "first" else self.jobs[::-1]
        return next((job for job in order if stage in job.stages), None)

    def has(self, expression: str) -> bool:
        """Tell whether jobs have the stages that an expression names, finished or not."""
        words = [word.split("|") for word in expression.split() if word not in _SIGNS]
        return all(any(map(self._has, alternatives)) for alternatives in words)

    def _has(self, name: str) -> bool:
        return name[0].isdigit() or self._job(*_parts(name)[:2]) is not None

    def number(self, expression: str) -> float | None:
        """Return the value of figures and numbers with + - * / between them, None if one lacks."""
        words = [w if w in _SIGNS else self._first(w.split("|")) for w in expression.split()]
        if any(word is None for word in words):
            return None
        return words[0] if len(words) == 1 else arithmetic(words)

    def _first(self, alternatives: Sequence[str]) -> float | None:
        figures = (float(a) if a[0].isdigit() else self._figure(*_parts(a)) for a in alternatives)
        return next((figure for figure in figures if figure is not None), None)

    def _figure(self, stage: str, kind: str, key: str) -> float | None:
        job = self._job(stage, kind)
        if job is None:
            return None
        if key == "epochs":
            file = self.root / job.name / stage / "metrics.csv"
            return len(file.read_text().splitlines()) - 1 if file.is_file() else None
        return (metrics(self.root, job.name, stage) or {}).get(key)

    def flops(self) -> int:
        """Return the FLOPs of the last network, as the papers on network slimming count them."""
        job = self.jobs[-1]
        stage = next(stage for stage in reversed(job.stages) if stage != "measure")
        model = load_model(self.root / job.name / stage / "model.pt").model
        return slimming_flops(model, torch.zeros(1, 3, 32, 32))

    def groups(self) -> Mapping[str, Any]:
        """Return what was kept of every group of channels."""
        return read_json(self.root / self.jobs[-1].name / "prune" / "plan.json")["groups"]


def _parts(figure: str) -> tuple[str, str, str]:
    parts = _FIGURE.fullmatch(figure)
    if parts is None:
        raise ValueError(f"{figure}: a figure is written STAGE.METRIC")
    return parts["stage"], parts["kind"] or "", parts["key"]


def layer_share(one: Measured) -> float:
    """Return the mean share of filters that is left of a layer, in percent."""
    counts = [group for group in one.groups().values() if len(group["producers"]) == 1]
    return 100 * statistics.fmean(group["kept"] / group["of"] for group in counts)


def overlap(one: Measured, other: Measured) -> float:
    """Return the mean share of kept channels that another run keeps too."""
    first, second = (
        {name: {*g["indices"]} for name, g in run.groups().items() if g["kept"] < g["of"]}
        for run in (one, other)
    )
    return statistics.fmean(len(k & second.get(name, k)) / len(k) for name, k in first.items())


def overlaps(pairs: Sequence[tuple[Measured, Measured]]) -> str:
    """Return how much runs share with others of their seeds; "equal" where it is all."""
    shares = [overlap(*pair) for pair in pairs if pair[1].finished(["prune"])]
    return "equal" if shares and min(shares) == 1 else spread(shares)


@torch.inference_mode()
def agreement(one: Measured) -> float:
    """Return on how many percent of all test images the last network says what the first does.

    Where the runs used a part of the images, such as the exact ones, it is all the same of all.
    """
    ends = one.jobs[0], one.jobs[-1]
    files = [one.root / job.name / _network_stage(job) / "model.pt" for job in ends]
    dataset = read_json(files[-1].with_name("settings.json"))["dataset"]
    whole = {key: value for key, value in dataset.items() if key != "only_exact"}
    whole |= _place_of_images(one.root, ends[-1])
    images = build(whole, "dataset").load("cpu", 0).test
    first, last = (predictions(load_model(file).model, images, "cpu")[0] for file in files)
    return 100 * float((first.argmax(1) == last.argmax(1)).double().mean())


def _place_of_images(root: Path, job: Job) -> dict[str, str]:
    """Return the folder of images that a run was started with, which is no part of its settings."""
    receipt = log_of(job.name, root).with_suffix(".json")
    arguments = read_json(receipt)["arguments"] if receipt.is_file() else []
    settings = dict(word.split("=", 1) for word in arguments if "=" in word)
    return {"root": settings["dataset.root"]} if "dataset.root" in settings else {}


def _network_stage(job: Job) -> str:
    """Return the last stage of a job that leaves a network."""
    return next(stage for stage in reversed(job.stages) if stage != "measure")


SPECIAL: Mapping[str, Callable[[Measured], float]] = {
    "flops of slimming": Measured.flops,
    "share of layers": layer_share,
    "agreement": agreement,
}


@dataclass(frozen=True)
class Column:
    """A rule that computes a cell from the seeds that have finished.

    `form` formats mean and standard deviation; "first" gives the figure of the first seed as it
    is, and a number rounds the mean to so many digits. Several figures are those of the first seed.
    """

    value: str | tuple[str, ...]
    form: str | int = "{:.2f}"

    @classmethod
    def of(cls, spec: Any) -> Column:
        """Return the column that a file describes: an expression, or a list of it and the form.

        "timing" says how speed-ups were measured.
        """
        if spec == "timing":
            return TIMING
        value, *form = spec if isinstance(spec, list) else [spec]
        return cls(tuple(value) if isinstance(value, list) else value, *form)

    def cell(self, done: Sequence[Measured], jobs: Measured, blank: str) -> Any:
        """Return the text, or number, over seeds; `blank` where none is done.

        "-" stands where the jobs have no such stage.
        """
        if self.value in SPECIAL:
            figures = [SPECIAL[self.value](one) for one in done]
            return spread(figures, self.form, blank)
        if isinstance(self.value, tuple):
            if jobs.jobs and not all(map(jobs.has, self.value)):
                return "-"
            found = [done[0].number(v) for v in self.value] if done else []
            return self.form.format(*found) if found and None not in found else blank
        if jobs.jobs and not jobs.has(self.value):
            return "-"
        figures = [n for one in done if (n := one.number(self.value)) is not None]
        if self.form == "first" and figures:
            return figures[0]
        if isinstance(self.form, int) and figures:
            return round(statistics.fmean(figures), self.form)
        return spread(figures, self.form, blank if not done else NOT_RUN)


TIMING = Column(
    ("measure.latency_batch", "measure.latency_threads", "100 * measure.speedup_scatter"),
    "batch {:.0f}, threads {:.0f}, eager, scatter {:.0f} %",
)
"""How networks were timed, beside every speed-up; the ratio's scatter between rounds."""


def spread(values: Sequence[float], form: str = "{:.2f}", blank: str = NOT_RUN) -> str:
    """Return mean and standard deviation over seeds; one value stands alone."""
    if not values:
        return blank
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean
