"""Verdicts: which rows of a table beat which others, paired over seeds and test images.

Keys of a sheet of verdicts, beside those of others: rows are compared whose values of `same` are
equal. Each of `pairs` takes those whose `label` is one of `of` and none of `without`, `against`
others, by these labels, for each of the `networks` of a run, or of its own. `against` is what the
title of the difference calls them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.reporting.significance import paired
from scripts.reproduce.measured import Measured
from scripts.reproduce.rows import Row, fits, head_of
from scripts.reproduce.tables import Table

Sheet = Mapping[str, Any]


def verdicts(table: Table, sheet: Sheet, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield what beats what, for one after another of the groups of rows that are compared."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in sheet.get("same", ()))
        groups.setdefault(key, {})[row[sheet["label"]]] = row
    for group in groups.values():
        runs = {label: table.runs(row) for label, row in group.items()}
        for network, label, against in _pairs(sheet, [*group]):
            settings = (sheet.get("against", ""), sheet.get("digits", 3), network)
            result = verdict(runs[label], runs[against], *settings)
            if result:
                compared = {**group[label], "tested": network, "against": against}
                yield head_of(sheet["head"], compared) | result


def _pairs(sheet: Sheet, labels: Sequence[str]) -> Iterator[tuple[str | None, str, str]]:
    """Yield a network of a run and the labels of two rows, in the order of the sheet."""
    for network, pair in product(sheet.get("networks", [None]), sheet["pairs"]):
        first = [
            label
            for label in labels
            if fits({"label": label}, {"label": pair.get("of", "*")})
            and label not in pair.get("without", ())
        ]
        if network in pair.get("networks", [network]):
            for label, against in product(first, pair["against"]):
                if against in labels and label != against:
                    yield network, label, against


def verdict(
    first: Sequence[Measured],
    second: Sequence[Measured],
    against: str = "",
    digits: int = 3,
    network: str | None = None,
) -> dict[str, Any] | None:
    """Compare the first runs with the second in error, paired over seeds and test images.

    Both are in the order of their seeds; a seed counts where both were measured, and without one
    there is no verdict. `against` is what the second are called, `network` which of a run's
    networks is meant.
    """
    whole = [*_both(first, second, network)]
    if not whole:
        return None
    result = paired(*zip(*whole, strict=True))
    form = f"{{:+.{digits}f}}".format
    title = f"error minus {against}, points" if against else "error difference, points"
    return {
        "seeds": len(whole),
        title: form(result.difference),
        "95 % interval": f"{form(result.low)} to {form(result.high)}",
        "verdict": result.verdict,
    }


def _both(
    first: Sequence[Measured], second: Sequence[Measured], network: str | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for runs in zip(first, second, strict=False):
        both = [correct(run.root, run.jobs[-1].name, network) for run in runs]
        if both[0] is not None and both[1] is not None:
            yield both[0], both[1]


def correct(root: Path, run: str, network: str | None = None) -> np.ndarray | None:
    """Return which test images a network of a run recognises, None where it was not measured.

    It is the last network of the run unless `network` names another.
    """
    file = root / run / "measure" / "correct.pt"
    if not file.is_file():
        return None
    networks = torch.load(file, weights_only=True)
    return (list(networks.values())[-1] if network is None else networks[network]).numpy()
