"""Sensitivity curves: accuracy of a network while one group alone loses channels."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ArtifactError

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
    file = curves_file(path)
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            return curves_of(csv.DictReader(lines))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise ArtifactError(f"{file} holds no sensitivity curves ({error}); {_MEND}") from error


def curves_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Curve]:
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


def curves_file(path: str | Path) -> Path:
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
