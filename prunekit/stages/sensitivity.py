"""The stage that measures accuracy and cost while one group of channels at a time is narrowed."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria import Criterion, L1Norm, Scores
from prunekit.data import Batches, Data
from prunekit.data.base import balanced_indices
from prunekit.engine import CHECKED, CutOptions, Traced, cut_once
from prunekit.errors import ArtifactError, ConfigError, listed
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.measure import LatencyTest
from prunekit.methods.hinge import layers_with_matrix
from prunekit.modes import evaluating
from prunekit.outputs import logits_of
from prunekit.reporting.sensitivity import draw
from prunekit.runs.files import write_csv
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.schema import Checked, Count, Filled, Range, Text
from prunekit.selection import PerLayer, Scored, parse_curves
from prunekit.selection.candidates import matching_groups
from prunekit.selection.sensitivity import FILE
from prunekit.stages.network import FromNetwork, measure_size, weights_notes
from prunekit.stages.prune import STATISTICS_IMAGES
from prunekit.stages.settings import Absorb, NormStatistics, OverNorms, Runtime
from prunekit.stages.stage import Stage
from prunekit.text import unguarded
from prunekit.training import recompute_statistics
from prunekit.training.evaluation import to_device

_BATCH = 1000  # images at once
_TENTHS = tuple(number / 10 for number in range(1, 10))
Key = tuple[str, int]  # a group and the number of units removed; ("", 0) is the dense network


@dataclass(frozen=True)
class SensitivityGrid(Checked):
    """The groups that are narrowed, the shares of channels removed, and the images that judge.

    `groups` are patterns of layers. `images` is the number of validation images, balanced over
    classes; None uses all. `timing` measures the table of layer times that gives milliseconds.
    """

    shares: Annotated[
        Sequence[Annotated[float, Range(above=0, below=1)]],
        Filled("[0.5]"),
        "shares of a group's channels that are removed",
    ] = _TENTHS
    groups: Annotated[Sequence[Text], "patterns of the layers that are narrowed"] = ("*",)
    images: Annotated[
        Count | None, "number of validation images, balanced over classes; null: all"
    ] = None
    timing: Annotated[
        LatencyTest | None, "how layers are timed; null: no milliseconds are predicted"
    ] = field(default_factory=LatencyTest)

    def names(self, graph: ChannelGraph) -> list[str]:
        """Return the groups that match, in the order of the graph; ConfigError for none."""
        matching: set[str] = set()
        for pattern in self.groups:
            matching |= matching_groups(graph, pattern, "sensitivity.groups")
        if not matching:
            raise ConfigError(
                f"sensitivity.groups={[*self.groups]} leaves no channels that can go; "
                "prunekit inspect lists what can"
            )
        return [group.name for group in graph.groups if group.name in matching]


@dataclass(frozen=True)
class MeasureSensitivity(FromNetwork, Stage):
    """Writes sensitivity.csv, with a line for every group and share, and sensitivity.png.

    Each point is the network that prune would write with one group narrowed: cut physically,
    without training, and judged on validation images. An interrupted stage keeps its points.
    """

    name = "sensitivity"
    criterion: Annotated[Criterion, "how the units of a group are ranked"]
    sensitivity: Annotated[SensitivityGrid, "groups and shares"]
    absorb: Absorb
    over_norms: OverNorms
    statistics: NormStatistics

    def with_files(self, run: Path, source: Path | None) -> MeasureSensitivity:
        """Return the stage with the scores that lie beside the source, where there are any."""
        beside = self.criterion.resolve_beside(source)
        complete = self.criterion.resolved or beside.files()
        return replace(self, criterion=beside if complete else self.criterion)

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Cut the network at every point, measure its accuracy, and write the table and plot."""
        grid, data = self.sensitivity, self.data(runtime)
        images = _validation_images(grid, data)
        trial, notes = self._trial(stage_dir, data, runtime)
        points, file = _points(grid, trial), stage_dir.path / FILE
        costs, accuracies = _costs(grid, trial, points), _read_accuracies(file)
        missing = {point.key: point for point in points if point.key not in accuracies}
        for key, point in track(missing.items(), "sensitivity", len(missing)):
            accuracies[key] = _top1(trial.narrow(point), images, runtime)
            write_csv(file, _records(points, costs, accuracies))
            stage_dir.note_time()
        records = _records(points, costs, accuracies)
        write_csv(file, records)  # all milliseconds come from the table of this attempt
        run = stage_dir.run.path.resolve().name
        title = f"{run}: one group at a time, {images.size} validation images"
        draw(records, stage_dir.path / "sensitivity.png", title)
        unscored = [name for name in grid.names(trial.dense.graph) if name not in trial.scores]
        size = measure_size(trial.dense.model, data)
        return Outcome(
            {**size, **_summary(records), "images": images.size},
            (
                *([] if stage_dir.has_source else weights_notes(self.dense.weights)),
                *data.notes,
                *notes,
                *([f"not scored, so not tried: {listed(unscored, 4)}"] if unscored else []),
            ),
        )

    def _trial(
        self, stage_dir: StageDir, data: Data, runtime: Runtime
    ) -> tuple[PruningTrial, list[str]]:
        """Return the scored network, and a note where no scores were stored for it."""
        model = self.start(stage_dir, data, runtime).model
        dense = Traced.of(model, data.example, data.inputs(CHECKED), self.over_norms)
        criterion, notes = self.criterion, []
        if not criterion.resolved:
            criterion = L1Norm()
            notes = ["no scores are stored for this network: the lowest L1 norms go first"]
        options = CutOptions(self.absorb, check=False)
        recomputed = self.statistics == "recomputed"
        return PruningTrial(
            dense, dense.scores(criterion.for_cut(options.absorbs), data), options, recomputed, data
        ), notes


@dataclass(frozen=True, eq=False)
class GridPoint:
    """One group with a share of its units removed; `keep` is a bool mask over its units."""

    group: str
    share: float
    keep: Tensor

    @property
    def removed(self) -> int:
        """The number of units removed, which is the share rounded to whole units."""
        return int((~self.keep).sum())

    @property
    def key(self) -> Key:
        """The key of its accuracy; all points without removed units share one."""
        return (self.group, self.removed) if self.removed else ("", 0)


@dataclass(frozen=True, eq=False)
class PruningTrial:
    """A network, the scores of its units, and the options that prune would cut it with.

    With `recomputed`, batch-norm statistics of a narrowed network are those of training images.
    """

    dense: Traced
    scores: Scores
    options: CutOptions
    recomputed: bool
    data: Data

    def narrow(self, point: GridPoint) -> nn.Module:
        """Return a copy with one group narrowed, or the network itself with nothing removed."""
        if not point.removed:
            return self.dense.model
        scores = {point.group: self.scores[point.group]}
        model = cut_once(self.dense, {point.group: point.keep}, scores, self.options).model
        if self.recomputed:
            recompute_statistics(model, self.data.train, STATISTICS_IMAGES, self.dense.device)
        return model


class Images(Protocol):
    """The part of `Batches` that measuring accuracy needs."""

    @property
    def size(self) -> int:
        """The number of examples."""

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels, `batch` at a time."""


@dataclass(frozen=True, eq=False)
class Subset:
    """The examples of a set at `indices`, in order and never augmented."""

    batches: Batches
    indices: Tensor

    @property
    def size(self) -> int:
        """The number of examples."""
        return len(self.indices)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels, `batch` at a time."""
        return self.batches.pick(self.indices, batch)


def _validation_images(grid: SensitivityGrid, data: Data) -> Images:
    """Return the validation images that accuracy is measured on; ConfigError without any."""
    if not data.val.size:
        raise ConfigError(
            "sensitivity is judged on validation images and this dataset has none; set dataset.val "
            "above 0, or choose another dataset"
        )
    if grid.images is None or grid.images >= data.val.size:
        return data.val
    return Subset(data.val, balanced_indices(data.val.labels, grid.images, seed=0))


def _points(grid: SensitivityGrid, trial: PruningTrial) -> list[GridPoint]:
    """Return every group whole and at every share, in the order of the graph."""
    scored = Scored(trial.scores, trial.dense.graph, trial.dense.cost())
    masks = {
        share: PerLayer(round(1 - share, 12)).select(scored).keep
        for share in sorted({*grid.shares})
    }
    widest = masks[max(masks)]
    return [
        GridPoint(name, share, masks[share][name] if share else torch.ones_like(widest[name]))
        for name in grid.names(trial.dense.graph)
        if name in trial.scores
        for share in (0.0, *masks)
    ]


def _costs(
    grid: SensitivityGrid, trial: PruningTrial, points: Sequence[GridPoint]
) -> dict[GridPoint, Metrics]:
    """Return multiply-adds, parameters and predicted milliseconds of every point."""
    dense, cost, timed = trial.dense, trial.dense.cost(track), None
    if grid.timing is not None and not layers_with_matrix(dense.model):
        timed = cost.timed(grid.timing)
    costs: dict[GridPoint, Metrics] = {}
    for point in points:
        removed = ChannelMask.of(dense.graph, {point.group: point.keep}).removed
        costs[point] = {"macs": cost.macs(removed), "params": cost.params(removed)}
        if timed is not None:
            costs[point]["ms"] = timed.latency(removed)
    return costs


def _read_accuracies(file: Path) -> dict[Key, float]:
    """Return the accuracies of an interrupted stage; ArtifactError for a damaged file."""
    if not file.is_file():
        return {}
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            records = [
                (unguarded(line["group"]), int(line["removed"]), line["val_top1"])
                for line in csv.DictReader(lines)
            ]
        return {
            (group, removed) if removed else ("", 0): float(top1)
            for group, removed, top1 in records
        }
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{file} is damaged ({error}); delete it and run again") from error


def _records(
    points: Sequence[GridPoint],
    costs: Mapping[GridPoint, Metrics],
    accuracies: Mapping[Key, float],
) -> list[dict[str, Any]]:
    """Return the lines of sensitivity.csv for all points whose accuracy was measured."""
    return [
        {
            "group": point.group,
            "share": point.share,
            "removed": point.removed,
            "units": len(point.keep),
            "val_top1": accuracies[point.key],
            **costs[point],
        }
        for point in points
        if point.key in accuracies
    ]


def _top1(model: nn.Module, images: Images, runtime: Runtime) -> float:
    """Return the share of images that are recognised, in percent, without a progress bar."""
    correct = 0
    with evaluating(model), torch.inference_mode():
        for x, y in images.epoch(_BATCH, None):
            logits = logits_of(model(to_device(x, runtime.device)))
            correct += int((logits.argmax(dim=1) == y.to(runtime.device)).sum())
    return 100 * correct / images.size


def _summary(records: Sequence[Mapping[str, Any]]) -> Metrics:
    """Return the dense accuracy, and the loss of every group at the share nearest to a half."""
    dense = records[0]["val_top1"]
    shares = [record["share"] for record in records if record["share"]]
    nearest = min(shares, key=lambda share: abs(share - 0.5))
    losses = {
        record["group"]: round(dense - record["val_top1"], 4)
        for record in records
        if record["share"] == nearest
    }
    return {
        "val_top1": dense,
        "groups": len(parse_curves(records)),
        "at_share": nearest,
        "most_sensitive": max(losses, key=lambda name: losses[name]),
        **{f"lost/{name}": loss for name, loss in losses.items()},
    }
