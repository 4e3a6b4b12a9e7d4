"""Sensitivity curves: accuracy of a network while one group alone loses channels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ArtifactError, ConfigError, listed, one_of
from prunekit.selection.base import (
    SELECTIONS,
    Scored,
    Selected,
    Selection,
    order_best_first,
    validate_scores,
)
from prunekit.selection.budgets import Budget, MacsTarget
from prunekit.selection.candidates import ignored_groups

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph


FILE = "sensitivity.csv"
_MEND = "run prunekit sensitivity again"


@dataclass(frozen=True)
class Curve:
    """Accuracy in percent, `top1`, when `removed` of the `units` of a group are gone.

    Both are as long as there are points; `removed` rises and begins with 0.
    """

    units: int
    removed: tuple[int, ...]
    top1: tuple[float, ...]

    def losses(self) -> Tensor:
        """Points of accuracy lost when 1, 2, ... all units are gone, a double vector that rises.

        Gains count as no loss, and what was lost once stays lost when more goes: the running
        maximum, linear in between. Past the last point it rises to the loss of everything.
        """
        lost = np.maximum.accumulate(self.top1[0] - np.array(self.top1))
        known, lost = [*self.removed], [*lost]
        if known[-1] < self.units:
            known.append(self.units)
            lost.append(max(self.top1[0], lost[-1]))
        return torch.from_numpy(np.interp(np.arange(1, self.units + 1), known, lost))


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Group name -> its curve, of a csv, or of a sensitivity stage or a run with one.

    ArtifactError where there is none, where it is unfinished or damaged.
    """
    file = find_curves_file(path)
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            return parse_curves(csv.DictReader(lines))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{file} holds no sensitivity curves ({error}); {_MEND}") from error


def parse_curves(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
    """Curves from rows of group, removed, units and val_top1, numbers or their text.

    ValueError where one does not begin with nothing removed, or removes more than there is.
    """
    points: dict[str, dict[int, float]] = {}
    units: dict[str, int] = {}
    for row in rows:
        name = str(row["group"])
        points.setdefault(name, {})[int(row["removed"])] = float(row["val_top1"])
        units[name] = int(row["units"])
    if not points:
        raise ValueError("no rows")
    return {name: _curve(name, units[name], found) for name, found in points.items()}


def _curve(name: str, units: int, points: Mapping[int, float]) -> Curve:
    removed = tuple(sorted(points))
    if removed[0] != 0 or removed[-1] > units:
        raise ValueError(f"{name} has points from {removed[0]} to {removed[-1]} of {units} removed")
    top1 = tuple(points[count] for count in removed)
    if not np.isfinite(top1).all():
        raise ValueError(f"{name} has accuracies that are not finite")
    return Curve(units, removed, top1)


def find_curves_file(path: str | Path) -> Path:
    """The csv that `path` means; ArtifactError where it is missing or its stage is unfinished."""
    place = Path(path)
    for file in (place, place / FILE, place / "sensitivity" / FILE):
        if file.is_file():
            _check_finished(file)
            return file
    raise ArtifactError(
        f"{place} has no {FILE}; run prunekit sensitivity first, or give selection.path=..."
    )


def _check_finished(file: Path) -> None:
    beside = file.parent
    if (beside / "settings.json").is_file() and not (beside / "report.json").is_file():
        raise ArtifactError(f"{beside} is unfinished; {_MEND} to finish it")


_LISTED = 4


@SELECTIONS.register("sensitivity")
@dataclass(frozen=True)
class Sensitivity(Selection):
    """The largest network within a budget whose groups all stay within one loss of accuracy.

    A unit goes at the loss that the curve of its group shows when it and all worse units of the
    group are gone; scores decide the order within a group only. The lowest losses of all groups go
    first, equal ones by the share of the group, until `budget` is met: that is bisection on a
    common tolerance. Losses compare between groups as they are, so the budget's `normalise` and
    `scope` are left out. `path` is a csv, a stage or a run; None is the sensitivity stage of the
    same run, see `resolve_in`.
    """

    budget: Annotated[Budget, "that ends the search"] = field(default_factory=MacsTarget)
    path: Annotated[
        str | Path | None, "a run, a stage or a csv with curves; null: the stage of this run"
    ] = None
    min_keep: int = field(init=False)  # the budget says both
    rounds: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = {"budget": replace(self.budget, normalise=None, scope="global")}
        found |= {key: getattr(self.budget, key) for key in ("min_keep", "rounds")}
        for key, value in found.items():
            object.__setattr__(self, key, value)

    def select(self, scored: Scored) -> Selected:
        """ArtifactError where curves and network differ, ConfigError for a budget out of reach."""
        ranks = self._ranks(scored)
        return self._answer(self.budget.select(replace(scored, scores=ranks)))

    def _answer(self, selected: Selected) -> Selected:
        """The budget's answer, with the tolerance in words."""
        return replace(
            selected,
            notes=(*selected.notes, self._tolerance(selected.keep)),
            recount=lambda keep: self._answer(selected.after(keep)),
        )

    def resolve_in(self, run: Path) -> Sensitivity:
        """With the curves of the run's own sensitivity stage, where no others are named."""
        return self if self.path is not None else replace(self, path=run / "sensitivity")

    def files(self) -> Mapping[str, Path]:
        """The curves, whose losses decide."""
        return {"curves": find_curves_file(self._place())}

    def _tolerance(self, keep: Mapping[str, Tensor]) -> str:
        """The loss that no group exceeds by itself, and the group that sets it."""
        lost = {name: loss for name, loss in self._lost(keep).items() if loss > 0}
        if not lost:
            return "sensitivity: no group loses accuracy by itself"
        worst = max(lost, key=lambda name: lost[name])
        return (
            f"sensitivity: by its curve every group alone costs at most {lost[worst]:.2f} points "
            f"of validation accuracy, {worst} the most; together they cost more"
        )

    def _ranks(self, scored: Scored) -> dict[str, Tensor]:
        """For every unit its place in the order in which units go, equal where nothing decides."""
        scores = validate_scores(scored.scores, scored.graph)
        curves = self._curves(scores, scored.graph)
        names = [name for name in scores if name in curves]
        each = [curves[name].losses() for name in names]
        shares = [torch.arange(1, len(loss) + 1) / len(loss) for loss in each]
        pairs = torch.stack([torch.cat(each), torch.cat(shares).double()], dim=1)
        _, places = pairs.unique(dim=0, return_inverse=True)  # sorted by loss, then by share
        found = {}
        for name, place in zip(names, places.split([len(loss) for loss in each]), strict=True):
            found[name] = torch.empty(len(place), dtype=torch.float64)
            found[name][order_best_first(scores[name]).flip(0)] = place.double()
        return found

    def _lost(self, keep: Mapping[str, Tensor]) -> dict[str, float]:
        """Points that every group costs by its curve."""
        gone = {name: int((~mask).sum()) for name, mask in keep.items()}
        return {
            name: float(curve.losses()[gone[name] - 1])
            for name, curve in read_curves(self._place()).items()
            if gone.get(name)
        }

    def _curves(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Curve]:
        """The curves, which must be of this network and of all groups that may be narrowed."""
        place, widths = self._place(), {group.name: len(group.units) for group in graph.groups}
        curves = read_curves(place)
        for name, curve in curves.items():
            if name not in widths:
                raise ArtifactError(
                    f"{place} has a curve of {name}, which this network has not; "
                    f"{one_of(name, widths)}"
                )
            if curve.units != widths[name]:
                raise ArtifactError(
                    f"{place} is of another network: {name} has {curve.units} units there and "
                    f"{widths[name]} here"
                )
        open_ = [name for name in scores if name not in ignored_groups(graph, self.budget.ignore)]
        lacking = [name for name in open_ if name not in curves]
        if lacking:
            raise ArtifactError(
                f"{place} has no curve of {listed(lacking, _LISTED)}; run prunekit sensitivity "
                "for all groups, or name those in selection.budget.ignore"
            )
        return curves

    def _place(self) -> str | Path:
        if self.path is None:
            raise ConfigError(
                "selection.path is not set; give a run with a sensitivity stage, or its csv"
            )
        return self.path
