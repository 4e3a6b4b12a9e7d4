"""Runs that differ in the seed only, as one line: means and standard deviations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.reporting.columns import SHOWN, Cells, filled, shown, telling

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_OF_ONE_RUN = frozenset({"run", "seed", "last_stage", "problems"})


@dataclass(frozen=True)
class Averages:
    """A line a setting, the most accurate first; `settings` are those of the summary, in order."""

    settings: tuple[str, ...]
    cells: Cells

    @classmethod
    def of(cls, runs: DataFrame) -> Averages | None:
        """Those of a summary of one test set; None where every setting has one run alone."""
        if not {"setting", "top1"} <= {*runs}:
            return None
        known = runs.dropna(subset=["setting", "top1"])
        groups = dict(list(known.groupby("setting", sort=False)))
        if all(len(group) == 1 for group in groups.values()):
            return None
        order = sorted(groups, key=lambda setting: -float(groups[setting]["top1"].mean()))
        return cls(tuple(order), _cells(known, [groups[setting] for setting in order]))


def shared_name(names: Sequence[str]) -> str:
    """What names of runs have in common, and a star for what lies between.

    "seed0/l1" and "seed1/l1" are "seed*/l1".
    """
    if len({*names}) == 1:
        return names[0]
    head = os.path.commonprefix(list(names))  # noqa: RUF071 (letter by letter is meant)
    rests = [name[len(head) :] for name in names]
    tail = os.path.commonprefix([rest[::-1] for rest in rests])[::-1]  # noqa: RUF071
    return f"{head}*{tail}"


def _cells(known: DataFrame, groups: Sequence[DataFrame]) -> Cells:
    kept = {key for key in telling(known) if key not in _OF_ONE_RUN and filled(known[key])}
    columns = [column for column in SHOWN if column[0] in kept]
    lines = [
        (
            shared_name(group["run"].tolist()),
            str(len(group)),
            *(_spread(group[key], form) for key, _, form in columns),
        )
        for group in groups
    ]
    return Cells(
        ("run", "seeds", *(key for key, _, _ in columns)),
        ("runs", "seeds", *(heading for _, heading, _ in columns)),
        (False, True, *(form != "{}" for _, _, form in columns)),
        tuple(lines),
    )


def _spread(values: Series, form: str) -> str:
    """Mean and standard deviation; where all read the same, what they read."""
    read = {shown(value, form) for value in values.dropna()}
    if len(read) < 2:
        return next(iter(read), shown(None, form))
    mean, spread = shown(values.mean(), form), shown(values.std(), form)
    return f"{mean.removesuffix('x')} ± {spread.removeprefix('+')}"
