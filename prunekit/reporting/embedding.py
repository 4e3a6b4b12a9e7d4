"""Figures of t-SNE embeddings: one panel for each run, one look for each class."""

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
from prunekit.reporting.figures import MARKERS, as_label, figure

if TYPE_CHECKING:
    from pandas import DataFrame

# Tol's muted palette, which colour-blind readers can distinguish, with a darker grey
_COLOURS = (
    *("#332288", "#88CCEE", "#CC6677", "#117733", "#DDCC77"),
    *("#AA4499", "#44AA99", "#882255", "#999933", "#777777"),
)
_MAX_NAMED = 20  # classes in a legend; more are a colour scale
_MAX_COLUMNS = 4  # panels side by side


@dataclass(frozen=True, eq=False)
class Embedding:
    """Holds the points (images, 2) and labels (images,) of a features.csv."""

    points: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Embedding:
        """Read records of x, y and label, which may be numbers or text."""
        values = [(float(r["x"]), float(r["y"]), int(r["label"])) for r in records]
        table = np.array(values, dtype=float).reshape(-1, 3)
        return cls(table[:, :2], table[:, 2].astype(int))

    @classmethod
    def read(cls, file: str | Path) -> Embedding:
        """Read a features.csv; ArtifactError if it is missing or damaged."""
        try:
            with open(file, encoding="utf-8", newline="") as lines:
                embedding = cls.of(csv.DictReader(lines))
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise ArtifactError(
                f"{file} cannot be read; run the features stage again with overwrite=true"
            ) from error
        if not len(embedding.labels):
            raise ArtifactError(
                f"{file} has no rows; run the features stage again with overwrite=true"
            )
        return embedding


def side_by_side(stages: DataFrame, path: str | Path) -> None:
    """Draw the embeddings of all runs in one figure, with a panel for each run.

    `stages` is the result of `collect`. Raises ArtifactError if no run has an embedding.
    """
    finished = stages[(stages["stage"] == "features") & (stages["status"] == "finished")]
    if finished.empty:
        raise ArtifactError(f"{path}: no run has drawn features; run prunekit features first")
    panels = {
        f"{stage['run']}: {str(stage['source']).split('/')[0]}, {stage['top1']:.2f} %": (
            Embedding.read(Path(stage["path"]) / "features.csv")
        )
        for _, stage in finished.iterrows()
    }
    draw(panels, path)


def draw(panels: Mapping[str, Embedding], path: str | Path) -> None:
    """Draw titled scatter plots in a square, at most four of them side by side.

    Up to twenty classes have a colour and a marker each, the same in all panels, and a legend; more
    classes share a colour scale.
    """
    classes = sorted({int(label) for part in panels.values() for label in part.labels})
    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(panels))))
    rows = -(-len(panels) // columns)
    size = (4.0 * columns + 1.0, 4.0 * rows + 0.2)
    with figure(path, size, (rows, columns)) as (fig, grid):
        axes = list(grid.flat)
        for axis, (title, embedding) in zip(axes, panels.items(), strict=False):
            _frame(axis, title)
            if len(classes) <= _MAX_NAMED:
                _draw_classes(axis, embedding, classes)
            else:
                points = _draw_scaled(axis, embedding, classes)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        if len(classes) <= _MAX_NAMED:
            _legend(fig, classes)
        else:
            fig.colorbar(points, ax=axes, label="Class", shrink=0.8, aspect=30)


def _frame(axis: Any, title: str) -> None:
    """Draw a frame without ticks, since distances in t-SNE have no unit."""
    axis.set(xticks=[], yticks=[])
    axis.set_title(as_label(title), fontsize=9, wrap=True)
    axis.grid(visible=False)
    axis.set_aspect("equal", adjustable="datalim")
    for spine in axis.spines.values():
        spine.set(visible=True, color="#bbbbbb", linewidth=0.8)


def _looks(classes: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return a different pair of colour and marker for every class."""
    styles = zip(classes, cycle(_COLOURS), cycle(MARKERS), strict=False)
    return {
        label: {"color": colour, "marker": marker, "linewidths": 0.3, "edgecolors": "white"}
        for label, colour, marker in styles
    }


def _draw_classes(axis: Any, embedding: Embedding, classes: Sequence[int]) -> None:
    for label, look in _looks(classes).items():
        points = embedding.points[embedding.labels == label]
        axis.scatter(*points.T, s=_marker_area(len(embedding.labels)), **look)


def _draw_scaled(axis: Any, embedding: Embedding, classes: Sequence[int]) -> Any:
    """Draw classes as colours of one scale; returns the points, for the colour bar."""
    return axis.scatter(
        *embedding.points.T,
        c=embedding.labels,
        cmap="viridis",
        vmin=classes[0],
        vmax=classes[-1],
        s=_marker_area(len(embedding.labels)),
        linewidths=0,
    )


def _marker_area(points: int) -> float:
    """Return a marker area in square points that leaves room between this many points."""
    return float(np.clip(16_000 / max(points, 1), 3, 30))


def _legend(fig: Any, classes: Sequence[int]) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], linestyle="none", markersize=7, color=look["color"], marker=look["marker"])
        for look in _looks(classes).values()
    ]
    fig.legend(
        entries, [str(label) for label in classes], loc="outside right center", title="Class"
    )
