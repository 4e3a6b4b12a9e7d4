"""The picture of sensitivity: accuracy and cost against the share of one group that is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.reporting.figures import COLOURS, MARKERS, figure, legend_above

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = 8  # groups that lines can tell apart; more are rows of a heat map
_NUMBERED = 100  # groups whose accuracies fit into the cells
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class _Panel:
    """A column of the rows: how it is called, and whether it counts against the dense network."""

    column: str
    title: str
    relative: bool

    def values(self, rows: Rows) -> np.ndarray:
        """Numbers to draw."""
        found = np.array([float(row[self.column]) for row in rows])
        return 100 * found / found[0] if self.relative else found


_PANELS = (
    _Panel("val_top1", "Validation accuracy (%)", False),
    _Panel("macs", "Multiply-adds left (%)", True),
    _Panel("ms", "Latency left (%), predicted", True),
)


def draw(rows: Rows, path: str | Path, title: str) -> None:
    """A panel for accuracy, multiply-adds and, where it is known, latency.

    `rows` are those of sensitivity.csv. Up to eight groups are lines over the share that really
    went; more are rows of a heat map over the share that was to go.
    """
    groups = [*dict.fromkeys(row["group"] for row in rows)]
    panels = [panel for panel in _PANELS if panel.column in rows[0]]
    (_lines if len(groups) <= _LINES else _heat)(rows, groups, panels, path, title)


def _of(rows: Rows, group: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["group"] == group]


def _lines(
    rows: Rows, groups: Sequence[str], panels: Sequence[_Panel], path: str | Path, title: str
) -> None:
    with figure(path, (3.9 * len(panels), 3.9), (1, len(panels))) as (made, grid):
        for axis, panel in zip(grid[0], panels, strict=True):
            for group, colour, marker in zip(groups, cycle(COLOURS), cycle(MARKERS), strict=False):
                mine = _of(rows, group)
                gone = [100 * int(row["removed"]) / int(row["units"]) for row in mine]
                axis.plot(
                    *(gone, panel.values(mine), f"{marker}-"),
                    color=colour,
                    label=f"{group} ({mine[0]['units']})",
                    markersize=5,
                    linewidth=1.4,
                )
            axis.set(xlabel="Removed of the group (%)", ylabel=panel.title, xlim=(0, 100))
            if panel.relative:
                axis.set_ylim(bottom=0)
        legend_above(made, grid[0], across=4)
        made.legends[0].set_title(title)


def _heat(
    rows: Rows, groups: Sequence[str], panels: Sequence[_Panel], path: str | Path, title: str
) -> None:
    shares = sorted({float(row["share"]) for row in rows})
    size = (2.2 + (0.42 * len(shares) + 0.6) * len(panels), 1.9 + 0.24 * len(groups))
    with figure(path, size, (1, len(panels)), sharey=True) as (made, grid):
        for axis, panel in zip(grid[0], panels, strict=True):
            cells = np.array([panel.values(_of(rows, group)) for group in groups])
            _cells(made, axis, panel, cells)
            axis.set_xticks(range(len(shares)), [f"{100 * share:.3g}" for share in shares])
            axis.set(xlabel="Removed of the group (%)")
        units = {group: _of(rows, group)[0]["units"] for group in groups}
        labels = [f"{group} ({units[group]})" for group in groups]
        grid[0][0].set_yticks(range(len(groups)), labels, fontsize=8)
        made.suptitle(title, fontsize=10)


def _cells(made: Figure, axis: Axes, panel: _Panel, cells: np.ndarray) -> None:
    """One heat map; light is good, as numbers in the cells say too where they fit."""
    low, high = 10 * np.floor(cells.min() / 10), cells.max()
    low = min(low, high - 10)
    shown = axis.imshow(cells, aspect="auto", cmap="cividis", vmin=low, vmax=high)
    axis.grid(visible=False)
    axis.tick_params(length=0, labelsize=8)
    made.colorbar(
        shown, ax=axis, location="top", label=panel.title, shrink=0.9, aspect=25, pad=0.01
    )
    if len(cells) > _NUMBERED:
        return
    for (row, column), value in np.ndenumerate(cells):
        colour = "black" if value > low + 0.5 * (high - low) else "white"
        text = {"ha": "center", "va": "center", "fontsize": 6.5, "color": colour}
        axis.text(column, row, f"{value:.0f}", **text)
