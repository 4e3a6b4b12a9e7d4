"""Accuracy and cost while one group of channels at a time is narrowed; the network stays."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria import Criterion, L1Norm, Scores
from prunekit.data import Batches, Data
from prunekit.data.base import balanced
from prunekit.engine import CHECKED, CutOptions, Traced, cut_once
from prunekit.errors import ArtifactError, ConfigError, listed
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.measure import LatencyTest
from prunekit.methods.hinge import layers_with_matrix
from prunekit.modes import evaluating
from prunekit.reporting.sensitivity import draw
from prunekit.runs.files import write_csv
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.schema import Checked, Count, Filled, Range, Text
from prunekit.selection import PerLayer, Scored, curves_of
from prunekit.selection.curves import FILE
from prunekit.selection.patterns import groups_matching
from prunekit.stages.common import counts
from prunekit.stages.network import FromNetwork, notes_on
from prunekit.stages.pruned_variants import IMAGES
from prunekit.stages.root import Absorb, NormStatistics, OverNorms
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Stage
from prunekit.training import recompute_statistics
from prunekit.training.evaluate import placed

_BATCH = 1000  # images at once
_TENTHS = tuple(number / 10 for number in range(1, 10))
Key = tuple[str, int]  # a group and how many units are gone; "" and 0 is the dense network


@dataclass(frozen=True)
class Probe(Checked):
    """Which groups are narrowed, by which shares of their channels, and on what that is judged.

    `groups` are patterns of layers; `images` is how many validation images count, classes
    balanced, None for all. With `timing` a table of layer times gives milliseconds.
    """

    shares: Annotated[
        Sequence[Annotated[float, Range(above=0, below=1)]], Filled("[0.5]"), "of a group removed"
    ] = _TENTHS
    groups: Annotated[Sequence[Text], "patterns of the layers that are narrowed"] = ("*",)
    images: Annotated[Count | None, "validation images, classes balanced; null: all"] = None
    timing: Annotated[LatencyTest | None, "null: no milliseconds"] = field(
        default_factory=LatencyTest
    )

    def names(self, graph: ChannelGraph) -> list[str]:
        """The groups that the patterns mean, in the order of the graph; ConfigError for none."""
        found: set[str] = set()
        for pattern in self.groups:
            found |= groups_matching(graph, pattern, "sensitivity.groups")
        if not found:
            raise ConfigError(
                f"sensitivity.groups={[*self.groups]} leaves no channels that can go; "
                "prunekit inspect lists what can"
            )
        return [group.name for group in graph.groups if group.name in found]


@dataclass(frozen=True)
class MeasureSensitivity(FromNetwork, Stage):
    """Write sensitivity.csv (a row for every group and share) and sensitivity.png.

    Each point is the network that prune would write with one group narrowed, cut physically,
    without training; it is judged on validation images. Points that an interrupted stage has found
    are kept.
    """

    name = "sensitivity"
    criterion: Annotated[Criterion, "which channels of a group go first"]
    sensitivity: Annotated[Probe, "which groups, which shares"]
    absorb: Absorb
    over_norms: OverNorms
    statistics: NormStatistics

    def within(self, run: Path, source: Path | None) -> MeasureSensitivity:
        """With stored scores beside the source, where there are some."""
        beside = self.criterion.beside(source)
        known = self.criterion.complete or beside.files()
        return replace(self, criterion=beside if known else self.criterion)

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Cut, judge, and keep every point."""
        probe, data = self.sensitivity, self.data(runtime)
        images = _images(probe, data)
        trial, notes = self._trial(place, data, runtime)
        points, file = _points(probe, trial), place.path / FILE
        costs, found = _costs(probe, trial, points), _known(file)
        open_ = [*{point.key: point for point in points if point.key not in found}.values()]
        for point in track(open_, "sensitivity", len(open_)):
            found[point.key] = _top1(trial.narrowed(point), images, runtime)
            write_csv(file, _rows(points, costs, found))
            place.note_time()
        rows = _rows(points, costs, found)
        write_csv(file, rows)  # milliseconds are of one table, that of the last attempt
        draw(rows, place.path / "sensitivity.png", _title(place, images))
        lacking = [name for name in probe.names(trial.dense.graph) if name not in trial.scores]
        return Outcome(
            {**counts(trial.dense.model, data), **_summary(rows), "images": images.size},
            (
                *([] if place.sourced else notes_on(self.dense.weights)),
                *data.notes,
                *notes,
                *([f"not scored, so not tried: {listed(lacking, 4)}"] if lacking else []),
            ),
        )

    def _trial(self, place: StageDir, data: Data, runtime: Runtime) -> tuple[Trial, list[str]]:
        """The scored network, and what must be said of how it was scored."""
        model = self.start(place, data, runtime).model
        dense = Traced.of(model, data.example, data.inputs(CHECKED), self.over_norms)
        criterion, notes = self.criterion, []
        if not criterion.complete:
            criterion = L1Norm()
            notes = ["no scores are stored for this network: the lowest L1 norms go first"]
        options = CutOptions(self.absorb, check=False)
        recomputed = self.statistics == "recomputed"
        return Trial(dense, dense.scores(criterion, data), options, recomputed, data), notes


@dataclass(frozen=True, eq=False)
class Point:
    """What is left of one group when a share of it was to go; `keep` is a mask over its units."""

    group: str
    share: float
    keep: Tensor

    @property
    def removed(self) -> int:
        """How many units are gone: whole ones, so the share is met to the nearest."""
        return int((~self.keep).sum())

    @property
    def key(self) -> Key:
        """What its accuracy hangs on."""
        return (self.group, self.removed) if self.removed else ("", 0)


@dataclass(frozen=True, eq=False)
class Trial:
    """A network, the scores of its units, and how prune would cut it."""

    dense: Traced
    scores: Scores
    options: CutOptions
    recomputed: bool  # batch-norm statistics, on training images
    data: Data

    def narrowed(self, point: Point) -> nn.Module:
        """The network with one group narrowed, of a copy; with nothing removed it is the same."""
        if not point.removed:
            return self.dense.model
        score = {point.group: self.scores[point.group]}
        made = cut_once(self.dense, {point.group: point.keep}, score, self.options)
        if self.recomputed:
            recompute_statistics(made.model, self.data.train, IMAGES, self.dense.device)
        return made.model


def _images(probe: Probe, data: Data) -> Batches:
    """The validation images that count; ConfigError without any."""
    if not data.val.size:
        raise ConfigError(
            "sensitivity is judged on validation images and this dataset has none; set dataset.val "
            "above 0, or choose another dataset"
        )
    if probe.images is None or probe.images >= data.val.size:
        return data.val
    return Chosen(data.val, balanced(data.val.labels, probe.images, seed=0))


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some examples of a set, in order, as far as judging needs it."""

    batches: Batches
    indices: Tensor

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, `batch` at a time, always unchanged."""
        return self.batches.pick(self.indices, batch)


def _points(probe: Probe, trial: Trial) -> list[Point]:
    """Every group whole, then at every share, in the order of the graph; some of it stays."""
    scored = Scored(trial.scores, trial.dense.graph, trial.dense.cost())
    at = {
        share: PerLayer(round(1 - share, 12)).select(scored).keep
        for share in sorted({*probe.shares})
    }
    return [
        Point(name, share, at[share][name] if share else torch.ones_like(at[max(at)][name]))
        for name in probe.names(trial.dense.graph)
        if name in trial.scores
        for share in (0.0, *at)
    ]


def _costs(probe: Probe, trial: Trial, points: Sequence[Point]) -> dict[Point, Metrics]:
    """Multiply-adds and parameters of every point, and milliseconds by the table of layers."""
    dense, cost, timed = trial.dense, trial.dense.cost(track), None
    if probe.timing is not None and not layers_with_matrix(dense.model):
        timed = cost.timed(probe.timing)
    found: dict[Point, Metrics] = {}
    for point in points:
        removed = ChannelMask.of(dense.graph, {point.group: point.keep}).removed
        found[point] = {"macs": cost.macs(removed), "params": cost.params(removed)}
        if timed is not None:
            found[point]["ms"] = timed.latency(removed)
    return found


def _known(file: Path) -> dict[Key, float]:
    """Accuracies that an interrupted stage has found; ArtifactError for a damaged file."""
    if not file.is_file():
        return {}
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = [(r["group"], int(r["removed"]), r["val_top1"]) for r in csv.DictReader(lines)]
            return {(name, gone) if gone else ("", 0): float(top1) for name, gone, top1 in rows}
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{file} is damaged ({error}); delete it and run again") from error


def _rows(
    points: Sequence[Point], costs: Mapping[Point, Metrics], found: Mapping[Key, float]
) -> list[dict[str, Any]]:
    """The lines of sensitivity.csv, as far as they are known."""
    return [
        {
            "group": point.group,
            "share": point.share,
            "removed": point.removed,
            "units": len(point.keep),
            "val_top1": found[point.key],
            **costs[point],
        }
        for point in points
        if point.key in found
    ]


def _top1(model: nn.Module, images: Batches, runtime: Runtime) -> float:
    """Percent recognised; without a bar of its own, since there is one for all points."""
    right = 0
    with evaluating(model), torch.inference_mode():
        for x, y in images.epoch(_BATCH, None):
            logits = model(placed(x, runtime.device))
            right += int((logits.argmax(dim=1) == y.to(runtime.device)).sum())
    return 100 * right / images.size


def _summary(rows: Sequence[Mapping[str, Any]]) -> Metrics:
    """The dense accuracy, and the loss at the share nearest to a half, of every group."""
    found: Metrics = {"val_top1": rows[0]["val_top1"], "groups": len(curves_of(rows))}
    nearest = min((row["share"] for row in rows if row["share"]), key=lambda s: abs(s - 0.5))
    lost = {
        row["group"]: round(rows[0]["val_top1"] - row["val_top1"], 4)
        for row in rows
        if row["share"] == nearest
    }
    found |= {"at_share": nearest, "most_sensitive": max(lost, key=lambda name: lost[name])}
    return found | {f"lost/{name}": points for name, points in lost.items()}


def _title(stage: StageDir, images: Batches) -> str:
    return f"{stage.run.path.resolve().name}: one group at a time, {images.size} validation images"
