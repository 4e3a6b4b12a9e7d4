"""Means and standard deviations over runs that differ only in the seed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.reporting.formats import (
    SUMMARY_COLUMNS,
    TextTable,
    format_value,
    has_values,
    summary_columns,
)

if TYPE_CHECKING:
    from pandas import DataFrame

_PER_RUN = frozenset({"run", "seed", "last_stage", "problems"})


@dataclass(frozen=True)
class SeedAverages:
    """A table with one line for each setting, the most accurate first.

    `settings` are the fingerprints of the lines, from the summary's column `setting`.
    """

    settings: tuple[str, ...]
    table: TextTable

    @classmethod
    def of(cls, runs: DataFrame) -> SeedAverages | None:
        """Average a summary of one test set; None if no setting has more than one run."""
        if not {"setting", "top1"} <= {*runs}:
            return None
        measured = one_run_per_seed(runs.dropna(subset=["setting", "top1"]))
        groups = {str(key): group for key, group in measured.groupby("setting", sort=False)}
        if all(len(group) == 1 for group in groups.values()):
            return None
        order = sorted(groups, key=lambda setting: -float(groups[setting]["top1"].mean()))
        return cls(tuple(order), _table(measured, [groups[setting] for setting in order]))


def one_run_per_seed(runs: DataFrame) -> DataFrame:
    """Return the first run of every setting and seed, so that a copy does not count again.

    Runs whose setting or seed is not known all count.
    """
    if not {"setting", "seed"} <= {*runs}:
        return runs
    is_known = runs["setting"].notna() & runs["seed"].notna()
    kept: DataFrame = runs[~(is_known & runs.duplicated(["setting", "seed"]))]
    return kept


def shared_name(names: Sequence[str]) -> str:
    """Return the common beginning and end of names, with a star for the rest.

    For example "seed*/l1" for "seed0/l1" and "seed1/l1".
    """
    if len({*names}) == 1:
        return names[0]
    head = os.path.commonprefix(list(names))  # noqa: RUF071 (letter by letter is meant)
    rests = [name[len(head) :] for name in names]
    tail = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
    return f"{head}*{tail}"


def spread(values: Iterable[object], form: str = "{:.2f}") -> str:
    """Return mean and standard deviation as text, without missing values.

    Values that all look the same when formatted are shown as one.
    """
    present = [value for value in values if value is not None and value == value]
    texts = {format_value(value, form) for value in present}
    if len(texts) < 2:
        return next(iter(texts), format_value(None, form))
    numbers = [float(value) for value in present if isinstance(value, int | float)]
    average = sum(numbers) / len(numbers)
    squares = sum((number - average) * (number - average) for number in numbers)
    mean = format_value(average, form)
    deviation = format_value(math.sqrt(squares / (len(numbers) - 1)), form)
    return f"{mean.removesuffix('x')} ± {deviation.removeprefix('+')}"


def _table(runs: DataFrame, groups: Sequence[DataFrame]) -> TextTable:
    keys = {key for key in summary_columns(runs) if key not in _PER_RUN and has_values(runs[key])}
    columns = [column for column in SUMMARY_COLUMNS if column[0] in keys]
    lines = [
        (
            shared_name(group["run"].tolist()),
            str(len(group)),
            *(spread(group[key].tolist(), form) for key, _, form in columns),
        )
        for group in groups
    ]
    return TextTable(
        ("run", "seeds", *(key for key, _, _ in columns)),
        ("runs", "seeds", *(heading for _, heading, _ in columns)),
        (False, True, *(form != "{}" for _, _, form in columns)),
        tuple(lines),
    )
