"""The figure of sensitivity: accuracy and cost against the share removed from one group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.reporting.figures import COLOURS, MARKERS, as_label, figure, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LINES = 8  # groups that are drawn as lines; more become a heat map
_MAX_NUMBERED = 100  # groups whose values fit into the cells of a heat map
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Panel:
    """A panel: its column of sensitivity.csv, its title, and whether it shows percent of dense."""

    column: str
    title: str
    relative: bool

    def values(self, records: Records) -> np.ndarray:
        """Return the numbers to draw."""
        numbers = np.array([float(record[self.column]) for record in records])
        return 100 * numbers / numbers[0] if self.relative else numbers


_PANELS = (
    _Panel("val_top1", "Validation accuracy (%)", False),
    _Panel("macs", "Multiply-adds left (%)", True),
    _Panel("ms", "Latency left (%), predicted", True),
)


def draw(records: Records, path: str | Path, title: str) -> None:
    """Draw a panel each for accuracy, multiply-adds and, if it was measured, latency.

    `records` are the lines of sensitivity.csv. Up to eight groups are lines over the share that was
    removed; more are a heat map over the share that was to be removed.
    """
    groups = {name: _of_group(records, name) for name in dict.fromkeys(r["group"] for r in records)}
    panels = [panel for panel in _PANELS if panel.column in records[0]]
    (_draw_lines if len(groups) <= _MAX_LINES else _draw_heat_maps)(groups, panels, path, title)


def _of_group(records: Records, group: str) -> Records:
    return [record for record in records if record["group"] == group]


def _draw_lines(
    groups: Mapping[str, Records], panels: Sequence[_Panel], path: str | Path, title: str
) -> None:
    with figure(path, (3.9 * len(panels), 3.9), (1, len(panels))) as (fig, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            looks = zip(groups.items(), cycle(COLOURS), cycle(MARKERS), strict=False)
            for (group, records), colour, marker in looks:
                removed = [100 * int(r["removed"]) / int(r["units"]) for r in records]
                axis.plot(
                    *(removed, panel.values(records), f"{marker}-"),
                    color=colour,
                    label=as_label(f"{group} ({records[0]['units']})"),
                    markersize=5,
                    linewidth=1.4,
                )
            axis.set(xlabel="Removed of the group (%)", ylabel=panel.title, xlim=(0, 100))
            if panel.relative:
                axis.set_ylim(bottom=0)
        legend_above(fig, axes[0], columns=4)
        fig.legends[0].set_title(as_label(title))


def _draw_heat_maps(
    groups: Mapping[str, Records], panels: Sequence[_Panel], path: str | Path, title: str
) -> None:
    shares = sorted({float(record["share"]) for part in groups.values() for record in part})
    size = (2.2 + (0.42 * len(shares) + 0.6) * len(panels), 1.9 + 0.24 * len(groups))
    with figure(path, size, (1, len(panels)), sharey=True) as (fig, axes):
        for axis, panel in zip(axes[0], panels, strict=True):
            cells = np.array([panel.values(records) for records in groups.values()])
            _draw_cells(fig, axis, panel, cells)
            axis.set_xticks(range(len(shares)), [f"{100 * share:.3g}" for share in shares])
            axis.set(xlabel="Removed of the group (%)")
        labels = [as_label(f"{group} ({records[0]['units']})") for group, records in groups.items()]
        axes[0][0].set_yticks(range(len(groups)), labels, fontsize=8)
        fig.suptitle(as_label(title), fontsize=10)


def _draw_cells(fig: Figure, axis: Axes, panel: _Panel, cells: np.ndarray) -> None:
    """Draw one heat map of (groups, shares), light for good values, with numbers if they fit."""
    low, high = 10 * np.floor(cells.min() / 10), cells.max()
    low = min(low, high - 10)
    image = axis.imshow(cells, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    axis.grid(visible=False)
    axis.tick_params(length=0, labelsize=8)
    fig.colorbar(image, ax=axis, location="top", label=panel.title, shrink=0.9, aspect=25, pad=0.01)
    if len(cells) > _MAX_NUMBERED:
        return
    for (row, column), value in np.ndenumerate(cells):
        colour = "black" if value > low + 0.5 * (high - low) else "white"
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
        axis.text(column, row, f"{value:.0f}", **style)
