"""The figure of refitting: the error of every layer behind a cut, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, as_label, figure, legend_above

_MAX_NAMED = 60  # layers whose names fit below the axis
_LEAST = 1e-3  # percent; smaller errors are drawn here, so that zero has a place on the log axis
_SERIES = {"before": ("o", COLOURS[1]), "after": ("s", COLOURS[0])}


def draw(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the relative error of layers in the order of the run, of several rounds one by one.

    `records` are the lines of refit.csv. Raises ArtifactError if there are none.
    """
    if not records:
        raise ArtifactError(f"{path}: no layer was refitted")
    places = np.arange(len(records))
    with figure(path, (max(4.0, 1.5 + 0.18 * min(len(records), _MAX_NAMED)), 3.6), (1, 1)) as (
        fig,
        axes,
    ):
        axis = axes[0, 0]
        for column, (marker, colour) in _SERIES.items():
            errors = [max(100 * float(record[column]), _LEAST) for record in records]
            style = {"color": colour, "label": column, "markersize": 4, "linewidth": 1.2}
            axis.plot(places, errors, f"{marker}-", **style)
        axis.set(yscale="log", ylabel="Error of the output (% of its variance)")
        if len(records) <= _MAX_NAMED:
            names = [as_label(_name(record)) for record in records]
            axis.set_xticks(places, names, rotation=90, fontsize=7)
        else:
            axis.set(xlabel="Layer, in the order of the run")
        legend_above(fig, axes[0])


def _name(record: Mapping[str, Any]) -> str:
    return f"{record['layer']} ({record['round']})" if "round" in record else str(record["layer"])
