"""Rows in the order of a figure, each with a verdict against the first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from prunekit.reporting.significance import SeedVariance, holm, paired
from scripts.reproduce.hits import KeptHits
from scripts.reproduce.measured import NOT_RUN
from scripts.reproduce.rows import Row
from scripts.reproduce.tables import Table
from scripts.reproduce.verdicts import cells_of, hits_of

BEHIND = "error minus that of the first, points"
VERDICT = (BEHIND, "95 % interval", "p, corrected", "verdict")
NETWORK = "fine-tuned"  # the one that rows are compared by


def ranked(table: Table, rank: Mapping[str, Any], rows: Sequence[Row], hits: KeptHits) -> list[Row]:
    """Return rows with a `rank`, the highest figure first, those without one last.

    They are ranked among neighbours that have the values of `within` in common. `behind` holds the
    columns of the verdict against the first. Those of one ranking are one family.
    """
    groups = groupby(rows, key=lambda row: [row[name] for name in rank["within"]])
    return [row for _, group in groups for row in _ranked(table, rank["by"], [*group], hits)]


def _ranked(table: Table, by: str, rows: Sequence[Row], hits: KeptHits) -> list[Row]:
    means = {id(row): _mean(table, by, row) for row in rows}
    order = sorted(rows, key=lambda row: -means[id(row)])
    behind = _behind(table, order, hits)
    return [
        {**row, "rank": place if means[id(row)] >= 0 else "-", "behind": cells}
        for place, (row, cells) in enumerate(zip(order, behind, strict=True), 1)
    ]


def _mean(table: Table, by: str, row: Row) -> float:
    """Return the mean over seeds; below all others where there is none."""
    figures = [figure for one in table.measured(row) if (figure := one.number(by)) is not None]
    return statistics.fmean(figures) if figures else -1.0


def _behind(table: Table, order: Sequence[Row], hits: KeptHits) -> list[Row]:
    """Return the columns of the verdict against the first row, for each row."""
    known = [hits_of(table, row, hits, NETWORK) for row in order]
    spread = SeedVariance.pooled(known)
    compared = [place for place in range(1, len(order)) if {*known[place]} & {*known[0]}]
    family = holm([paired(known[place], known[0], spread) for place in compared])
    cells = {
        place: cells_of(result, "that of the first", digits=2)
        for place, result in zip(compared, family, strict=True)
    }
    cells[0] = dict.fromkeys(VERDICT, "-")
    missing = dict.fromkeys(VERDICT, NOT_RUN)
    return [
        {title: cells.get(place, missing)[title] for title in VERDICT}
        for place in range(len(order))
    ]
