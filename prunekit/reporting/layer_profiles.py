"""Figures of one run: where its cost goes, layer by layer, and how its units score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, figure, legend_above

if TYPE_CHECKING:
    from pandas import DataFrame

_MOST = 40  # layers that get a bar of their own
_LIGHT = "#c4c4c4"
_REST = "all other modules"
# column of layers.csv, what its axis says, how many times the unit
_PANELS = {"macs": ("Multiply-adds (millions)", 1e6), "cpu_ms": ("CPU time (ms)", 1.0)}


def layer_costs(layers: DataFrame, path: str | Path) -> None:
    """Multiply-adds and milliseconds of every layer, the dense network beside the last one.

    `layers` is a layers.csv. Where the dearest layers are many, the others are one bar, and so are
    norms, activations and what else has no multiply-adds. Raises ArtifactError without rows.
    """
    parts = by_layer(layers)
    if not parts:
        raise ArtifactError(f"{path}: no layer is known; run the measure stage again")
    names = list(dict.fromkeys(name for part in parts.values() for name in part["macs"]))
    size = (9.0, 1.3 + 0.2 * len(names))
    with figure(path, size, (1, len(_PANELS)), sharey=True) as (made, grid):
        for axis, (column, (title, unit)) in zip(grid[0], _PANELS.items(), strict=True):
            for index, (label, part) in enumerate(parts.items()):
                values = [part[column].get(name, 0.0) / unit for name in names]
                places = np.arange(len(names)) + (index - (len(parts) - 1) / 2) * 0.4
                colour = _LIGHT if index == 0 and len(parts) > 1 else COLOURS[0]
                bars = {"color": colour, "edgecolor": "#555555", "linewidth": 0.4}
                axis.barh(places, values, height=0.38, label=label, **bars)
            axis.set(xlabel=title)
            axis.grid(visible=False, axis="y")
        grid[0, 0].set_yticks(range(len(names)), names, fontsize=8)
        grid[0, 0].set_ylim(len(names) - 0.4, -0.6)
        legend_above(made, grid[0])


def by_layer(layers: DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    """Network to column (macs, cpu_ms) to layer to number; the layers are those of the dense one.

    What a layer was parted into counts for it.
    """
    networks = {str(name): part for name, part in layers.groupby("network", sort=False)}
    if not networks:
        return {}
    first = next(iter(networks.values()))
    counted = first[first["macs"].fillna(0) > 0]
    dear = set(counted.nlargest(_MOST, "macs")["layer"])
    names = [name for name in counted["layer"] if name in dear]
    return {
        label: {column: _summed(part, column, names) for column in _PANELS}
        for label, part in networks.items()
    }


def _summed(part: DataFrame, column: str, names: Sequence[str]) -> dict[str, float]:
    sums = dict.fromkeys((*names, _REST), 0.0)
    for layer, value in zip(part["layer"], part[column].fillna(0), strict=True):
        sums[_home(str(layer), sums)] += float(value)
    return sums


def _home(layer: str, names: Mapping[str, Any]) -> str:
    """The layer itself, or the one that it is a part of."""
    parts = layer.split(".")
    inside = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
    return next((name for name in inside if name in names), _REST)


def scores(
    values: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], path: str | Path
) -> None:
    """A histogram of group norms or scales after sparsifying, what stays apart from what goes.

    Both map groups to one entry a unit, of `kept` booleans; groups that it lacks count as kept.
    Zeros, which a logarithmic axis has no place for, are counted in words. Raises ArtifactError
    where no unit has a score above zero.
    """
    norms = np.concatenate([np.zeros(0), *(np.asarray(part) for part in values.values())])
    alive = norms > 0
    if not alive.any():
        raise ArtifactError(f"{path}: no unit has a score above zero")
    stays = np.concatenate([_mask(kept, name, len(part)) for name, part in values.items()])
    with figure(path, (5.2, 3.2)) as (made, grid):
        axis = grid[0, 0]
        axis.hist(
            [norms[alive & stays], norms[alive & ~stays]],
            _edges(norms[alive]),
            stacked=True,
            color=[COLOURS[0], "white"],
            edgecolor=COLOURS[0],
            linewidth=0.6,
            hatch=["", "////"],
            label=["kept", "removed"],
        )
        zeros = (
            f"; {(~alive).sum():,} of {len(norms):,} are exactly zero" if not alive.all() else ""
        )
        axis.set(xscale="log", xlabel=f"Norm of a unit{zeros}", ylabel="Units")
        axis.minorticks_off()
        legend_above(made, [axis])


def _mask(kept: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray:
    mask = kept.get(name)
    return mask if mask is not None and len(mask) == count else np.ones(count, dtype=bool)


def _edges(norms: np.ndarray) -> np.ndarray:
    """Edges of bins, equally wide on a logarithmic axis, over half a decade at least."""
    low, high = np.log10(norms.min()), np.log10(norms.max())
    return 10 ** np.linspace(low - 1e-6, max(high, low + 0.5) + 1e-6, 31)
