"""Figures of runs: convergence, error against compression, widths, filters."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, LINES, MARKERS, figure, legend_above

if TYPE_CHECKING:
    from pandas import DataFrame

_MANY = 40  # bars that are too narrow for a number over each


def convergence(frames: Mapping[str, DataFrame], path: str | Path) -> None:
    """Filters left, training loss and validation error by epoch, one line a run.

    `frames` maps a label to the metrics.csv of a run (columns rows, train_loss, val_top1); a panel
    appears where a run has its column.
    """
    panels = {
        "rows": ("Filters left", lambda values: values),
        "train_loss": ("Training loss", lambda values: values),
        "val_top1": ("Validation error (%)", lambda values: 100 - values),
    }
    present = [key for key in panels if any(key in frame for frame in frames.values())]
    if not present:
        raise ArtifactError(
            f"{path}: {', '.join(frames) or 'no run'} has none of the columns {', '.join(panels)}"
        )
    size = (3.4 * len(present), 3.2)
    with figure(path, size, (1, len(present))) as (made, grid):
        axes = grid[0]
        for axis, key in zip(axes, present, strict=True):
            title, change = panels[key]
            for (label, frame), colour, line in zip(
                frames.items(), cycle(COLOURS), cycle(LINES), strict=False
            ):
                if key in frame:
                    shown = change(frame[key].astype(float))
                    steps = np.arange(1, len(shown) + 1)
                    axis.plot(steps, shown, line, color=colour, label=label, linewidth=1.8)
            axis.set(xlabel="Epoch", ylabel=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
        if "rows" in present:
            axes[0].set_ylim(bottom=0)
        legend_above(made, axes)


def tradeoff(frame: DataFrame, path: str | Path, x: str = "macs") -> None:
    """Test error against how many times fewer `x` (macs or params) there are, one line a method.

    `frame` is a summary of runs, with the columns method, top1 and macs_ratio or params_ratio.
    """
    names = {"macs": "multiply-adds", "params": "parameters"}
    if x not in names:
        raise ArtifactError(f"x={x!r} is not plotted; accepted: {', '.join(names)}")
    column = f"{x}_ratio"
    known = [key in frame for key in (column, "top1")]
    points = frame.dropna(subset=[column, "top1"]) if all(known) else frame.iloc[:0]
    if points.empty:
        raise ArtifactError(f"{path}: no run has both top1 and {column}; run measure first")
    methods = (
        points["method"].fillna("") if "method" in points else points["top1"].map(lambda _: "")
    )
    with figure(path, (5.2, 3.8)) as (made, grid):
        axis = grid[0, 0]
        for (label, group), colour, marker in zip(
            points.groupby(methods, sort=False), cycle(COLOURS), cycle(MARKERS), strict=False
        ):
            group = group.sort_values(column)
            errors = 100 - group["top1"].astype(float)
            axis.plot(
                *(group[column].astype(float), errors),
                *(f"{marker}-",),
                color=colour,
                label=str(label) or "runs",
                markersize=6,
                linewidth=1.2,
            )
        axis.set(xlabel=f"Times fewer {names[x]} (dense / pruned)", ylabel="Test error (%)")
        _spread_over_decades(axis, points[column].astype(float))
        legend_above(made, [axis])


def widths(before: Mapping[str, int], after: Mapping[str, int], path: str | Path) -> None:
    """How many channels of each layer are left, as dark bars in front of light ones.

    Both map layer names to counts; layers of `before` that `after` lacks count as whole. Numbers
    stand over the bars where there is room.
    """
    names = list(before)
    full = [before[name] for name in names]
    left = [after.get(name, before[name]) for name in names]
    rotate = len(names) > 8 or max(map(len, names)) > 9
    many = len(names) > _MANY
    with figure(path, (min(max(4.5, 0.42 * len(names) + 1.5), 11), 3.6)) as (made, grid):
        axis, places = grid[0, 0], np.arange(len(names))
        axis.bar(places, full, color="#d0d0d0", width=0.75, label="dense")
        axis.bar(places, left, color=COLOURS[0], width=0.75, label="kept")
        size = 8 if len(names) <= 20 else 6 if not many else 4
        for place, kept, whole in () if many else zip(places, left, full, strict=True):
            axis.annotate(
                f"{kept}" if rotate else f"{kept} of {whole}",
                (place, whole),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=size,
            )
        axis.set_xticks(places, names, rotation=90 if rotate else 0, fontsize=size + 1)
        axis.set(ylabel="Channels", xlim=(-0.6, len(names) - 0.4))
        axis.margins(y=0.12)
        axis.grid(visible=False, axis="x")
        legend_above(made, [axis])


def filters(weight_before: Tensor, weight_after: Tensor, path: str | Path) -> None:
    """The filters of a convolution before and after, strongest first, on one grey scale.

    Weights have the shape (filters, inputs, height, width); of several inputs the mean is shown.
    Filters that are exactly zero are drawn as empty frames.
    """
    tiles = [_tiles(weight) for weight in (weight_before, weight_after)]
    limit = max(float(np.abs(part).max(initial=0.0)) for part in tiles)
    if limit == 0:
        raise ArtifactError(f"{path}: all filters are zero, there is nothing to draw")
    across = min(10, max(len(part) for part in tiles))
    heights = [-(-len(part) // across) for part in tiles]
    size = (0.5 * across + 2.2, 0.5 * sum(heights) + 0.4)
    with figure(path, size, (sum(heights), across)) as (made, grid):
        axes = list(grid.flat)
        cut = heights[0] * across
        for part, places, title in zip(
            tiles, (axes[:cut], axes[cut:]), ("Before", "After"), strict=True
        ):
            alive = sum(bool(tile.any()) for tile in part)
            label = f"{title}\n{alive} filters"
            places[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
            for index, axis in enumerate(places):
                _draw_tile(axis, part[index] if index < len(part) else None, limit)
        scale = next(axis.images[0] for axis in axes if axis.images)
        made.colorbar(scale, ax=axes, label="Weight", shrink=0.8, aspect=30)


def _draw_tile(axis: Any, tile: np.ndarray | None, limit: float) -> None:
    """One filter in a thin frame; an empty frame for zeros, nothing for None."""
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.set_box_aspect(1)
    for spine in axis.spines.values():
        spine.set(visible=tile is not None, color="#999999", linewidth=0.5)
    if tile is not None and tile.any():
        axis.imshow(tile, cmap="gray", vmin=-limit, vmax=limit)


def _spread_over_decades(axis: Any, ratios: Any) -> None:
    """A logarithmic axis with plain numbers where the ratios differ by more than fivefold."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if ratios.min() > 0 and ratios.max() / ratios.min() > 5:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))


def _tiles(weight: Tensor) -> np.ndarray:
    """Filters as images (filters, height, width), the largest norm first."""
    if weight.dim() != 4:
        raise ArtifactError(
            f"filters of shape {tuple(weight.shape)} are no images; give a convolution's weight"
        )
    order = weight.detach().flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    return weight.detach()[order].mean(dim=1).cpu().numpy()
