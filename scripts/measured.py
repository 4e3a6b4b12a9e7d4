"""What tables of measured beside published figures share: reading runs, spreads, verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.console import table
from prunekit.errors import ArtifactError
from prunekit.reporting.significance import paired
from prunekit.runs.files import read_json, write_csv, write_text

NOT_RUN = "not run"
QUOTED = "another method, quoted"
IMAGENET = 1_281_167  # training images
_RATE = 10e12  # FLOPs a second that needed hours are computed with

Row = dict[str, Any]


def metrics(root: Path, run: str, stage: str) -> Row | None:
    """The metrics of a finished stage, None where it has not finished."""
    file = root / run / stage / "report.json"
    return read_json(file)["metrics"] if file.is_file() else None


def a_gpu(data: str, macs: float, images: float) -> str:
    """What training on so many images takes; the hours are computed, nothing was timed."""
    work = 3 * 2 * macs * images  # a backward pass is two forward passes
    hours = f"{work / _RATE / 3600:.1f} h at {_RATE / 1e12:.0f} TFLOP/s"
    return f"{data}, a GPU: {work:.1e} FLOPs a run, {hours}"


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Mean and standard deviation over seeds; one value stands alone, none is "not run"."""
    if not values:
        return NOT_RUN
    mean = form.format(statistics.fmean(values))
    return f"{mean} ± {form.format(statistics.stdev(values))}" if len(values) > 1 else mean


def correct(root: Path, run: str, network: str | None = None) -> np.ndarray | None:
    """Which test images a network of a run recognises, its last one unless `network` names another.

    None where it was not measured.
    """
    file = root / run / "measure" / "correct.pt"
    if not file.is_file():
        return None
    found = torch.load(file, weights_only=True)
    return (list(found.values())[-1] if network is None else found[network]).numpy()


def verdict(
    root: Path,
    first: Sequence[str],
    second: Sequence[str],
    against: str,
    digits: int = 3,
    network: str | None = None,
) -> Row | None:
    """The first runs minus the second in error, paired over seeds and test images.

    Both name runs in the order of their seeds; a seed counts where both were measured, and without
    one there is no verdict. `against` is what the second are called, `network` which of a run's
    networks is meant.
    """
    runs = zip(first, second, strict=True)
    pairs = [tuple(correct(root, run, network) for run in both) for both in runs]
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not whole:
        return None
    result = paired(*zip(*whole, strict=True))
    form = f"{{:+.{digits}f}}".format
    return {
        "seeds": len(whole),
        f"error minus {against}, points" if against else "error difference, points": form(
            result.difference
        ),
        "95 % interval": f"{form(result.low)} to {form(result.high)}",
        "verdict": result.verdict,
    }


def publish(out: Path, name: str, title: str, rows: Sequence[Row], text: str = "") -> str:
    """Write the rows as NAME.csv, show them, and return them as markdown below `text`.

    Columns are those of the first row; no rows, no table.
    """
    if not rows:
        return ""
    columns = list(rows[0])
    write_csv(out / f"{name}.csv", [{key: row[key] for key in columns} for row in rows])
    show(title, columns, rows)
    return f"{text}\n\n{markdown(columns, rows)}" if text else markdown(columns, rows)


def write_markdown(file: Path, *parts: str) -> None:
    """Write the parts that are not empty, an empty line between them."""
    content = "\n".join(part for part in parts if part)
    write_text(file, lambda stream: stream.write(content))


def refuse_empty(rows: Sequence[Row]) -> None:
    """Raise ArtifactError where no row has a seed that was measured."""
    if not rows or all(row.get("seeds") == 0 for row in rows):
        raise ArtifactError("nothing was measured for this table; run without --only-collect")


def markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The rows as a markdown table."""
    lines = [columns, ["---"] * len(columns), *([_text(row[c]) for c in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def show(title: str, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Print the rows."""
    table(title, columns, [[_text(row[column]) for column in columns] for row in rows])


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
