"""Figures of runs: convergence, widths, filters, scores, costs by layer, error by compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, LINES, MARKERS, as_label, figure, legend_above

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_MAX_NUMBERED = 40  # layers whose bars are wide enough for numbers
_MAX_LAYERS = 40  # layers that get a bar of their own in `layer_costs`
_LIGHT_GREY = "#c4c4c4"
_OTHER_LAYERS = "all other modules"
# column of layers.csv: axis label, unit
_COSTS = {"macs": ("Multiply-adds (millions)", 1e6), "cpu_ms": ("CPU time (ms)", 1.0)}


def convergence(frames: Mapping[str, DataFrame], path: str | Path) -> None:
    """Draw remaining filters, training loss and validation error by epoch, one line for each run.

    `frames` maps labels to the metrics.csv of runs (columns rows, train_loss, val_top1). A panel
    appears if any run has its column. Raises ArtifactError if there is none.
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
    with figure(path, size, (1, len(present))) as (fig, axes):
        for axis, key in zip(axes[0], present, strict=True):
            title, convert = panels[key]
            looks = zip(frames.items(), cycle(COLOURS), cycle(LINES), strict=False)
            for (label, frame), colour, line in looks:
                if key in frame:
                    values = convert(frame[key].astype(float))
                    epochs = np.arange(1, len(values) + 1)
                    style = {"color": colour, "label": as_label(label), "linewidth": 1.8}
                    axis.plot(epochs, values, line, **style)
            axis.set(xlabel="Epoch", ylabel=title)
            axis.xaxis.get_major_locator().set_params(integer=True)
        if "rows" in present:
            axes[0, 0].set_ylim(bottom=0)
        legend_above(fig, axes[0])


def tradeoff(frame: DataFrame, path: str | Path, x: str = "macs") -> None:
    """Draw test error against the compression of `x` (macs or params), one line for each method.

    `frame` is a summary of runs with the columns method, top1, and macs_ratio or params_ratio.
    Raises ArtifactError if no run has both values.
    """
    names = {"macs": "multiply-adds", "params": "parameters"}
    if x not in names:
        raise ArtifactError(f"x={x!r} is not plotted; accepted: {', '.join(names)}")
    column = f"{x}_ratio"
    complete = all(key in frame for key in (column, "top1"))
    points = frame.dropna(subset=[column, "top1"]) if complete else frame.iloc[:0]
    if points.empty:
        raise ArtifactError(f"{path}: no run has both top1 and {column}; run measure first")
    methods = (
        points["method"].fillna("") if "method" in points else points["top1"].map(lambda _: "")
    )
    with figure(path, (5.2, 3.8)) as (fig, axes):
        axis = axes[0, 0]
        for (label, group), colour, marker in zip(
            points.groupby(methods, sort=False), cycle(COLOURS), cycle(MARKERS), strict=False
        ):
            group = group.sort_values(column)
            errors = 100 - group["top1"].astype(float)
            axis.plot(
                *(group[column].astype(float), errors),
                *(f"{marker}-",),
                color=colour,
                label=as_label(str(label)) or "runs",
                markersize=6,
                linewidth=1.2,
            )
        axis.set(xlabel=f"Times fewer {names[x]} (dense / pruned)", ylabel="Test error (%)")
        _scale_ratios(axis, points[column].astype(float))
        legend_above(fig, [axis])


def widths(before: Mapping[str, int], after: Mapping[str, int], path: str | Path) -> None:
    """Draw how many channels each layer keeps, as dark bars in front of light ones.

    Both map layer names to counts; a layer that `after` lacks keeps all. The counts are written
    over the bars if there is room.
    """
    names = list(before)
    dense = [before[name] for name in names]
    kept = [after.get(name, before[name]) for name in names]
    rotate = len(names) > 8 or max(map(len, names)) > 9
    numbered = len(names) <= _MAX_NUMBERED
    with figure(path, (min(max(4.5, 0.42 * len(names) + 1.5), 11), 3.6)) as (fig, axes):
        axis, places = axes[0, 0], np.arange(len(names))
        axis.bar(places, dense, color="#d0d0d0", width=0.75, label="dense")
        axis.bar(places, kept, color=COLOURS[0], width=0.75, label="kept")
        size = 8 if len(names) <= 20 else 6 if numbered else 4
        for place, count, total in zip(places, kept, dense, strict=True) if numbered else ():
            axis.annotate(
                f"{count}" if rotate else f"{count} of {total}",
                (place, total),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=size,
            )
        labels = [*map(as_label, names)]
        axis.set_xticks(places, labels, rotation=90 if rotate else 0, fontsize=size + 1)
        axis.set(ylabel="Channels", xlim=(-0.6, len(names) - 0.4))
        axis.margins(y=0.12)
        axis.grid(visible=False, axis="x")
        legend_above(fig, [axis])


def filters(weight_before: Tensor, weight_after: Tensor, path: str | Path) -> None:
    """Draw the filters of a convolution before and after, strongest first, on one grey scale.

    Weights have the shape (filters, inputs, height, width) and are averaged over the inputs. Empty
    frames are filters that are exactly zero. Raises ArtifactError if all are.
    """
    images = [_filter_images(weight) for weight in (weight_before, weight_after)]
    limit = max(float(np.abs(part).max(initial=0.0)) for part in images)
    if limit == 0:
        raise ArtifactError(f"{path}: all filters are zero, there is nothing to draw")
    columns = min(10, max(len(part) for part in images))
    heights = [-(-len(part) // columns) for part in images]
    size = (0.5 * columns + 2.2, 0.5 * sum(heights) + 0.4)
    with figure(path, size, (sum(heights), columns)) as (fig, grid):
        axes = list(grid.flat)
        split = heights[0] * columns
        for part, places, title in zip(
            images, (axes[:split], axes[split:]), ("Before", "After"), strict=True
        ):
            nonzero = sum(bool(image.any()) for image in part)
            label = f"{title}\n{nonzero} filters"
            places[0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=10)
            for index, axis in enumerate(places):
                _draw_filter(axis, part[index] if index < len(part) else None, limit)
        image = next(axis.images[0] for axis in axes if axis.images)
        fig.colorbar(image, ax=axes, label="Weight", shrink=0.8, aspect=30)


def scores(
    values: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], path: str | Path
) -> None:
    """Draw a histogram of the units' scores after sparsifying, kept and removed ones apart.

    Both map groups to one entry per unit; `kept` holds booleans, and groups that it lacks are kept.
    The axis is logarithmic, so zeros are counted in its label. Raises ArtifactError if no score is
    above zero.
    """
    norms = np.concatenate([np.zeros(0), *(np.asarray(part) for part in values.values())])
    positive = norms > 0
    if not positive.any():
        raise ArtifactError(f"{path}: no unit has a score above zero")
    keep = np.concatenate([_mask(kept, name, len(part)) for name, part in values.items()])
    zeros = f"; {(~positive).sum():,} of {len(norms):,} are exactly zero"
    with figure(path, (5.2, 3.2)) as (fig, axes):
        axis = axes[0, 0]
        axis.hist(
            [norms[positive & keep], norms[positive & ~keep]],
            _log_bins(norms[positive]),
            stacked=True,
            color=[COLOURS[0], "white"],
            edgecolor=COLOURS[0],
            linewidth=0.6,
            hatch=["", "////"],
            label=["kept", "removed"],
        )
        label = f"Norm of a unit{'' if positive.all() else zeros}"
        axis.set(xscale="log", xlabel=label, ylabel="Units")
        axis.minorticks_off()
        legend_above(fig, [axis])


def layer_costs(layers: DataFrame, path: str | Path) -> None:
    """Draw multiply-adds and milliseconds of every layer of the dense and the narrow network.

    `layers` is a layers.csv. Modules without multiply-adds are one bar together, and so are all
    layers but the most expensive ones. Raises ArtifactError if the file has no lines.
    """
    networks = by_layer(layers)
    if not networks:
        raise ArtifactError(f"{path}: no layer is known; run the measure stage again")
    names = list(dict.fromkeys(name for costs in networks.values() for name in costs["macs"]))
    size = (9.0, 1.3 + 0.2 * len(names))
    with figure(path, size, (1, len(_COSTS)), sharey=True) as (fig, axes):
        for axis, (column, (title, unit)) in zip(axes[0], _COSTS.items(), strict=True):
            for index, (label, costs) in enumerate(networks.items()):
                values = [costs[column].get(name, 0.0) / unit for name in names]
                places = np.arange(len(names)) + (index - (len(networks) - 1) / 2) * 0.4
                colour = _LIGHT_GREY if index == 0 and len(networks) > 1 else COLOURS[0]
                style = {"color": colour, "edgecolor": "#555555", "linewidth": 0.4}
                axis.barh(places, values, height=0.38, label=label, **style)
            axis.set(xlabel=title)
            axis.grid(visible=False, axis="y")
        axes[0, 0].set_yticks(range(len(names)), [*map(as_label, names)], fontsize=8)
        axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
        legend_above(fig, axes[0])


def by_layer(layers: DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Return costs as {network: {column: {layer: number}}} for the columns macs and cpu_ms.

    The layers are those of the dense network, which comes first in `layers`; the parts into which a
    layer was decomposed are added up.
    """
    networks = {str(name): part for name, part in layers.groupby("network", sort=False)}
    if not networks:
        return {}
    dense = next(iter(networks.values()))
    weighted = dense[dense["macs"].fillna(0) > 0]
    expensive = set(weighted.nlargest(_MAX_LAYERS, "macs")["layer"])
    names = [str(name) for name in weighted["layer"] if name in expensive]
    return {
        label: {column: _sum_by_layer(part, column, names) for column in _COSTS}
        for label, part in networks.items()
    }


def _sum_by_layer(part: DataFrame, column: str, names: Sequence[str]) -> dict[str, float]:
    sums = dict.fromkeys((*names, _OTHER_LAYERS), 0.0)
    for layer, value in zip(part["layer"], part[column].fillna(0), strict=True):
        sums[_parent_layer(str(layer), sums)] += float(value)
    return sums


def _parent_layer(layer: str, names: Mapping[str, float]) -> str:
    """Return the innermost of the names that is the layer itself or contains it."""
    parts = layer.split(".")
    prefixes = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((name for name in prefixes if name in names), _OTHER_LAYERS)


def _mask(kept: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray:
    mask = kept.get(name)
    return mask if mask is not None and len(mask) == count else np.ones(count, dtype=bool)


def _log_bins(norms: np.ndarray) -> np.ndarray:
    """Return edges of bins of equal width on a logarithmic axis, over half a decade or more."""
    low, high = np.log10(norms.min()), np.log10(norms.max())
    return 10 ** np.linspace(low - 1e-6, max(high, low + 0.5) + 1e-6, 31)


def _draw_filter(axis: Any, image: np.ndarray | None, limit: float) -> None:
    """Draw one filter in a thin frame, an empty frame for zeros, or nothing for None."""
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.set_box_aspect(1)
    for spine in axis.spines.values():
        spine.set(visible=image is not None, color="#999999", linewidth=0.5)
    if image is not None and image.any():
        axis.imshow(image, cmap="gray", vmin=-limit, vmax=limit)


def _scale_ratios(axis: Any, ratios: Series) -> None:
    """Make the x axis logarithmic if the ratios differ by more than fivefold."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if ratios.min() > 0 and ratios.max() / ratios.min() > 5:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))


def _filter_images(weight: Tensor) -> np.ndarray:
    """Return filters as images (filters, height, width), those with the largest norm first."""
    if weight.dim() != 4:
        raise ArtifactError(
            f"filters of shape {tuple(weight.shape)} are no images; give a convolution's weight"
        )
    order = weight.detach().flatten(1).norm(dim=1).argsort(descending=True, stable=True)
    return weight.detach()[order].mean(dim=1).cpu().numpy()
