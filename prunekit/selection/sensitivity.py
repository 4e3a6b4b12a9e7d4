"""A selection from sensitivity curves, and the curves: accuracy while one group is narrowed."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ArtifactError, ConfigError, listed, one_of
from prunekit.selection.base import (
    SELECTIONS,
    Scored,
    validate_scores,
)
from prunekit.selection.candidates import ignored_groups
from prunekit.selection.losses import LossSelection, removal_ranks
from prunekit.text import unguarded

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

FILE = "sensitivity.csv"
_MEND = "run prunekit sensitivity again"
_LISTED = 4


@dataclass(frozen=True)
class Curve:
    """The accuracy `top1` in percent with `removed` of the `units` of one group removed.

    Both have one entry per point; `removed` increases and begins with 0.
    """

    units: int
    removed: tuple[int, ...]
    top1: tuple[float, ...]

    def losses(self) -> Tensor:
        """Return the accuracy lost, in points, with 1, 2, ... all units removed, as doubles.

        Between the points the running maximum of the loss is interpolated, so gains count as no
        loss and losses never decrease. Beyond the last point it rises to the loss of all accuracy.
        """
        losses = np.maximum.accumulate(self.top1[0] - np.array(self.top1)).tolist()
        counts = [*self.removed]
        if counts[-1] < self.units:
            counts.append(self.units)
            losses.append(max(self.top1[0], losses[-1]))
        return torch.from_numpy(np.interp(np.arange(1, self.units + 1), counts, losses))


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Read the curve of every group from a csv, or from a sensitivity stage or a run with one.

    Raises ArtifactError where it is missing, unfinished or damaged.
    """
    file = find_curves_file(path)
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            return parse_curves(csv.DictReader(lines))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{file} holds no sensitivity curves ({error}); {_MEND}") from error


def parse_curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Build curves from records of group, removed, units and val_top1, as numbers or text.

    Raises ValueError where a curve does not begin with 0 removed, or removes more than all units.
    """
    points: dict[str, dict[int, float]] = {}
    units: dict[str, int] = {}
    for record in records:
        name = unguarded(str(record["group"]))
        points.setdefault(name, {})[int(record["removed"])] = float(record["val_top1"])
        units[name] = int(record["units"])
    if not points:
        raise ValueError("no rows")
    return {name: _curve(name, units[name], curve) for name, curve in points.items()}


def _curve(name: str, units: int, points: Mapping[int, float]) -> Curve:
    removed = tuple(sorted(points))
    if removed[0] != 0 or removed[-1] > units:
        raise ValueError(f"{name} has points from {removed[0]} to {removed[-1]} of {units} removed")
    top1 = tuple(points[count] for count in removed)
    if not np.isfinite(top1).all():
        raise ValueError(f"{name} has accuracies that are not finite")
    return Curve(units, removed, top1)


def find_curves_file(path: str | Path) -> Path:
    """Return the csv of a path; raises ArtifactError where it is missing or unfinished."""
    folder = Path(path)
    for file in (folder, folder / FILE, folder / "sensitivity" / FILE):
        if file.is_file():
            _check_finished(file)
            return file
    raise ArtifactError(
        f"{folder} has no {FILE}; run prunekit sensitivity first, or give selection.path=..."
    )


def _check_finished(file: Path) -> None:
    stage = file.parent
    if (stage / "settings.json").is_file() and not (stage / "report.json").is_file():
        raise ArtifactError(f"{stage} is unfinished; {_MEND} to finish it")


@SELECTIONS.register("sensitivity")
@dataclass(frozen=True)
class Sensitivity(LossSelection):
    """The largest network within a budget whose groups all stay within one loss of accuracy.

    Every unit gets the loss that the curve of its group shows when that unit and all worse ones of
    the group are removed; scores only decide the order within a group. The units of the lowest
    losses are removed first, those of equal losses by their share of the group, until `budget` is
    met. This is bisection on a common tolerance. `path` is a csv, a stage or a run; None is the
    sensitivity stage of the same run (see `resolve_in`).
    """

    path: Annotated[
        str | Path | None, "a run, a stage or a csv with curves; null: the stage of this run"
    ] = None

    def resolve_in(self, run: Path) -> Sensitivity:
        """Return the selection by the run's own sensitivity stage, unless `path` is set."""
        return self if self.path is not None else replace(self, path=run / "sensitivity")

    def files(self) -> Mapping[str, Path]:
        """Return the file of curves."""
        return {"curves": find_curves_file(self._required_path())}

    def _notes(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return a sentence on the largest loss that one group costs by itself."""
        losses = {name: loss for name, loss in self._losses(keep).items() if loss > 0}
        if not losses:
            return ("sensitivity: no group loses accuracy by itself",)
        worst = max(losses, key=lambda name: losses[name])
        return (
            f"sensitivity: by its curve every group alone costs at most {losses[worst]:.2f} points "
            f"of validation accuracy, {worst} the most; together they cost more",
        )

    def _ranks(self, scored: Scored) -> dict[str, Tensor]:
        """Raise ArtifactError where curves and network differ."""
        scores = validate_scores(scored.scores, scored.graph)
        curves = self._curves(scores, scored.graph)
        losses = {name: curves[name].losses() for name in scores if name in curves}
        return removal_ranks(losses, scores)

    def _losses(self, keep: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the points of accuracy that narrowing each group costs by its curve."""
        removed = {name: int((~mask).sum()) for name, mask in keep.items()}
        return {
            name: float(curve.losses()[removed[name] - 1])
            for name, curve in read_curves(self._required_path()).items()
            if removed.get(name)
        }

    def _curves(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Curve]:
        """Read the curves; raises ArtifactError if they are of another network or incomplete."""
        path, widths = self._required_path(), {g.name: len(g.units) for g in graph.groups}
        curves = read_curves(path)
        for name, curve in curves.items():
            if name not in widths:
                raise ArtifactError(
                    f"{path} has a curve of {name}, which this network has not; "
                    f"{one_of(name, widths)}"
                )
            if curve.units != widths[name]:
                raise ArtifactError(
                    f"{path} is of another network: {name} has {curve.units} units there and "
                    f"{widths[name]} here"
                )
        ignored = ignored_groups(graph, self.budget.ignore)
        missing = [name for name in scores if name not in ignored and name not in curves]
        if missing:
            raise ArtifactError(
                f"{path} has no curve of {listed(missing, _LISTED)}; run prunekit sensitivity "
                "for all groups, or name those in selection.budget.ignore"
            )
        return curves

    def _required_path(self) -> str | Path:
        if self.path is None:
            raise ConfigError(
                "selection.path is not set; give a run with a sensitivity stage, or its csv"
            )
        return self.path
