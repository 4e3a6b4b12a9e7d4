"""Rows in the order of a figure, each with a verdict against the first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from scripts.reproduce.measured import NOT_RUN
from scripts.reproduce.rows import Row
from scripts.reproduce.tables import Table
from scripts.reproduce.verdicts import verdict

BEHIND = "error minus that of the first, points"
VERDICT = (BEHIND, "95 % interval", "verdict")


def ranked(table: Table, rank: Mapping[str, Any], rows: Sequence[Row]) -> list[Row]:
    """Return rows with a `rank`, the highest figure first, those without one last.

    They are ranked among neighbours that have the values of `within` in common. `behind` holds the
    columns of the verdict against the first.
    """
    groups = groupby(rows, key=lambda row: [row[name] for name in rank["within"]])
    return [row for _, group in groups for row in _ranked(table, rank["by"], [*group])]


def _ranked(table: Table, by: str, rows: Sequence[Row]) -> list[Row]:
    means = {id(row): _mean(table, by, row) for row in rows}
    order = sorted(rows, key=lambda row: -means[id(row)])
    return [
        {
            **row,
            "rank": place if means[id(row)] >= 0 else "-",
            "behind": dict.fromkeys(VERDICT, "-") if place == 1 else _behind(table, row, order[0]),
        }
        for place, row in enumerate(order, 1)
    ]


def _mean(table: Table, by: str, row: Row) -> float:
    """Return the mean over seeds; below all others where there is none."""
    figures = [figure for one in table.measured(row) if (figure := one.number(by)) is not None]
    return statistics.fmean(figures) if figures else -1.0


def _behind(table: Table, row: Row, first: Row) -> Row:
    both = table.runs(row), table.runs(first)
    result = verdict(*both, "that of the first", digits=2, network="fine-tuned") or {}
    return {title: result.get(title, NOT_RUN) for title in VERDICT}
