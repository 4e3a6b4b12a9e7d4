"""Pictures of images as points, one panel a run, every class in a look of its own."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import MARKERS, figure

if TYPE_CHECKING:
    from pandas import DataFrame

# Tol's muted palette with a darker grey: ten classes, each in a colour that everybody can tell
_COLOURS = (
    *("#332288", "#88CCEE", "#CC6677", "#117733", "#DDCC77"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#777777"),
)
_NAMED = 20  # classes that a legend can name; beyond, a scale stands for all
_ACROSS = 4  # panels side by side at most


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points (images, 2) and labels (images,) of a features.csv."""

    points: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Embedding:
        """From rows of x, y and label, numbers or their text."""
        found = [(float(row["x"]), float(row["y"]), int(row["label"])) for row in rows]
        table = np.array(found, dtype=float).reshape(-1, 3)
        return cls(table[:, :2], table[:, 2].astype(int))

    @classmethod
    def read(cls, file: str | Path) -> Embedding:
        """From a features.csv; ArtifactError where it is missing or damaged."""
        try:
            with open(file, encoding="utf-8", newline="") as lines:
                made = cls.of(csv.DictReader(lines))
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise ArtifactError(
                f"{file} cannot be read; run the features stage again with overwrite=true"
            ) from error
        if not len(made.labels):
            raise ArtifactError(
                f"{file} has no rows; run the features stage again with overwrite=true"
            )
        return made


def side_by_side(stages: DataFrame, path: str | Path) -> None:
    """One figure of all features that runs have drawn, a panel a run.

    `stages` is what `tables.collect` returns. ArtifactError where no run has any.
    """
    drawn = stages[(stages["stage"] == "features") & (stages["status"] == "finished")]
    if drawn.empty:
        raise ArtifactError(f"{path}: no run has drawn features; run prunekit features first")
    panels = {
        f"{row['run']}: {str(row['source']).split('/')[0]}, {row['top1']:.2f} %": Embedding.read(
            Path(row["path"]) / "features.csv"
        )
        for _, row in drawn.iterrows()
    }
    draw(panels, path)


def draw(panels: Mapping[str, Embedding], path: str | Path) -> None:
    """Scatter plots under their titles, in a square or in rows of four.

    Up to twenty classes have a colour and a marker each and a legend, the same in all panels; more
    share a scale from dark to light.
    """
    classes = sorted({int(label) for one in panels.values() for label in one.labels})
    across = min(_ACROSS, math.ceil(math.sqrt(len(panels))))
    down = -(-len(panels) // across)
    size = (4.0 * across + 1.0, 4.0 * down + 0.2)
    with figure(path, size, (down, across)) as (made, grid):
        axes = list(grid.flat)
        for axis, (title, one) in zip(axes, panels.items(), strict=False):
            _frame(axis, title)
            if len(classes) <= _NAMED:
                _draw_named(axis, one, classes)
            else:
                shown = _draw_many(axis, one, classes)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        if len(classes) <= _NAMED:
            _legend(made, classes)
        else:
            made.colorbar(shown, ax=axes, label="Class", shrink=0.8, aspect=30)


def _frame(axis: Any, title: str) -> None:
    """No ticks: distances in these pictures have no unit."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9, wrap=True)
    axis.grid(visible=False)
    axis.set_aspect("equal", adjustable="datalim")
    for spine in axis.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.8)


def _looks(classes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Colour and marker of every class; no pair comes twice."""
    styles = zip(classes, cycle(_COLOURS), cycle(MARKERS), strict=False)
    return {
        label: {"color": colour, "marker": marker, "linewidths": 0.3, "edgecolors": "white"}
        for label, colour, marker in styles
    }


def _draw_named(axis: Any, one: Embedding, classes: Sequence[int]) -> None:
    for label, look in _looks(classes).items():
        places = one.points[one.labels == label]
        axis.scatter(*places.T, s=_size(len(one.labels)), **look)


def _draw_many(axis: Any, one: Embedding, classes: Sequence[int]) -> Any:
    """By colour alone; returns what a colour bar describes."""
    return axis.scatter(
        *one.points.T,
        c=one.labels,
        cmap="viridis",
        vmin=classes[0],
        vmax=classes[-1],
        s=_size(len(one.labels)),
        linewidths=0,
    )


def _size(points: int) -> float:
    """Areas of markers that leave room between so many of them."""
    return float(np.clip(16_000 / max(points, 1), 3, 30))


def _legend(made: Any, classes: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], linestyle="none", markersize=7, color=look["color"], marker=look["marker"])
        for look in _looks(classes).values()
    ]
    made.legend(
        entries, [str(label) for label in classes], loc="outside right center", title="Class"
    )
