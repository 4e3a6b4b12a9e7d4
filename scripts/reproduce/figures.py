"""Pictures that belong to tables; `figures` of a file names them and says where they go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from prunekit.console import say
from prunekit.reporting.collect import collect
from prunekit.reporting.plots import convergence, tradeoff
from prunekit.reporting.tables import summary
from prunekit.reporting.tradeoff import accuracy_against_size
from prunekit.runs.files import write_csv
from scripts.reproduce.tables import Table

Settings = Mapping[str, Any]


def _tradeoff(table: Table, out: Path, settings: Settings) -> None:
    """Draw error against compression, from the csv file of the table; an axis to its picture."""
    frame = pd.read_csv(out / f"{table.name}.csv").rename(columns={"flops_ratio": "macs_ratio"})
    frame["top1"] = 100 - frame["error"]
    for axis, picture in settings.items():
        tradeoff(frame, out / picture, x=axis)


def _convergence(table: Table, out: Path, settings: Settings) -> None:
    """Write what was logged per epoch, and draw it; a picture to the curves that it has."""
    runs = [(row["curve"], table.measured(row)) for row in table.rows]
    frames = {
        curve: pd.read_csv(done[0].root / done[0].jobs[-1].name / "sparsify" / "metrics.csv")
        for curve, done in runs
        if done
    }
    pictures = dict(settings)
    records = [
        {"run": curve, **record}
        for curve, frame in frames.items()
        for record in frame.to_dict("records")
    ]
    write_csv(out / pictures.pop("csv"), records)
    for picture, pattern in pictures.items():
        curves = {name: frame for name, frame in frames.items() if fnmatchcase(name, pattern)}
        convergence(curves, out / picture)
    say(f"wrote {', '.join(str(out / file) for file in (*pictures, settings['csv']))}")


def _accuracy_against_size(table: Table, out: Path, settings: Settings) -> None:
    """Draw the accuracy of runs whose names begin as said."""
    runs = summary(collect([table.root / settings["runs"]]))
    is_drawn = runs["run"].str.startswith(tuple(settings["only"]))
    accuracy_against_size(runs[is_drawn], out / settings["png"])


FIGURES: Mapping[str, Callable[[Table, Path, Settings], None]] = {
    "tradeoff": _tradeoff,
    "convergence": _convergence,
    "accuracy_against_size": _accuracy_against_size,
}
