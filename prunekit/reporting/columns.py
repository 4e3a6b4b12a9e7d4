"""How figures of runs are called and shown: headings, numbers, ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

# metric, heading, how to show it
MEASURED = (
    ("top1", "top-1 %", "{:.2f}"),
    ("top5", "top-5 %", "{:.2f}"),
    ("params", "parameters", "{:,.0f}"),
    ("nonzero", "non-zero", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("cpu_ms", "CPU ms", "{:.3g}"),
    ("cpu_ms_compile", "CPU ms compiled", "{:.3g}"),
    ("cpu_ms_onnxruntime", "CPU ms onnxruntime", "{:.3g}"),
    ("gpu_ms", "GPU ms", "{:.3g}"),
    ("gpu_ms_compile", "GPU ms compiled", "{:.3g}"),
)
# metric, heading: dense divided by the row
RATIOS = (
    ("params", "params ratio"),
    ("macs", "MACs ratio"),
    ("cpu_ms", "CPU speed-up"),
    ("cpu_ms_compile", "compiled speed-up"),
    ("cpu_ms_onnxruntime", "onnxruntime speed-up"),
    ("gpu_ms", "GPU speed-up"),
    ("gpu_ms_compile", "GPU compiled speed-up"),
)
# norms below which the training log counts rows as small
SMALL = ("1e-02", "1e-03", "1e-04", "1e-05", "1e-06")
# what the settings of stages say about a run
_SETTINGS = frozenset({"model", "lam", "ratio", "keep", "seed"})
SHOWN = (
    ("run", "run", "{}"),
    ("model", "model", "{}"),
    ("method", "method", "{}"),
    ("lam", "lam", "{:g}"),
    ("ratio", "ratio", "{:g}"),
    ("keep", "keep", "{:g}"),
    ("seed", "seed", "{:.0f}"),
    ("last_stage", "last stage", "{}"),
    ("pruned_top1", "pruned %", "{:.2f}"),
    ("top1", "top-1 %", "{:.2f}"),
    ("top1_change", "change", "{:+.2f}"),
    ("params", "parameters", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("params_ratio", "params ratio", "{:.1f}x"),
    ("macs_ratio", "MACs ratio", "{:.1f}x"),
    ("speedup", "CPU speed-up", "{:.1f}x"),
    ("problems", "problems", "{}"),
)
# further columns of a summary that are written, not printed
_WRITTEN = (
    ("dense_top1", "dense %", "{:.2f}"),
    ("params_share", "params kept", "{:.1%}"),
    ("macs_share", "MACs kept", "{:.1%}"),
    ("tuned_top1", "fine-tuned %", "{:.2f}"),
    ("gpu_speedup", "GPU speed-up", "{:.1f}x"),
    *((f"below/{limit}", f"below {limit}", "{:.1%}") for limit in SMALL),
)
_FORMS = {key: (heading, form) for key, heading, form in (*MEASURED, *SHOWN, *_WRITTEN)}
# fingerprints and lines that are too long for a column
_UNPRINTED = frozenset({"setting", "data", "timing", "continued", "command"})


@dataclass(frozen=True)
class Cells:
    """A table as text: keys of its columns, headings, which hold numbers, and lines."""

    keys: tuple[str, ...]
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    lines: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: DataFrame, keys: Sequence[str] | None = None) -> Cells:
        """The columns in which some row has a value; numbers as they are printed."""
        asked = [key for key in table if key not in _UNPRINTED] if keys is None else keys
        kept = [key for key in asked if key in table and filled(table[key])]
        forms = [_FORMS.get(key, (key, "{}")) for key in kept]
        columns = [
            [shown(value, form) for value in table[key]]
            for key, (_, form) in zip(kept, forms, strict=True)
        ]
        return cls(
            tuple(kept),
            tuple(heading for heading, _ in forms),
            tuple(number(table[key].dropna().iloc[0]) is not None for key in kept),
            tuple(zip(*columns, strict=True)),
        )


def printed(table: DataFrame) -> Cells:
    """What a summary shows on a screen, see `telling`."""
    return Cells.of(table, telling(table))


def telling(table: DataFrame) -> list[str]:
    """Columns of a summary worth showing: settings in which no two runs differ are left out."""
    keys = [key for key, _, _ in SHOWN if key in table]
    return [key for key in keys if key not in _SETTINGS or table[key].nunique() > 1]


def compare(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells that set every network beside the first one.

    Rows are flat metrics with a `network` label; a column appears where a row has its metric, and
    a value that is missing or not a number stands as "-".
    """
    present = {key for row in rows for key, value in row.items() if number(value) is not None}
    plain = [column for column in MEASURED if column[0] in present]
    ratios = [column for column in RATIOS if column[0] in present]
    columns = ["network", *(heading for _, heading, _ in plain), *(h for _, h in ratios)]
    cells = [
        [
            str(row.get("network", "")),
            *(shown(row.get(key), form) for key, _, form in plain),
            *(shown(ratio(rows[0].get(key), row.get(key)), "{:.1f}x") for key, _ in ratios),
        ]
        for row in rows
    ]
    return columns, cells


def number(value: object) -> float | None:
    """A finite number, also from the text of a csv file, or None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def ratio(dense: object, narrow: object) -> float | None:
    """How many times more the first is; None where one is no number."""
    above, below = number(dense), number(narrow)
    return above / below if above is not None and below else None


def difference(narrow: object, dense: object) -> float | None:
    """The first less the second; None where one is no number."""
    left, right = number(narrow), number(dense)
    return left - right if left is not None and right is not None else None


def shown(value: object, form: str) -> str:
    """A value in its format; "-" for what should be a number and is none."""
    if form == "{}":
        return "" if value is None or value != value else str(value)
    found = number(value)
    return "-" if found is None else form.format(found)


def filled(column: Any) -> bool:
    """Whether any row has a value there."""
    return bool((column.notna() & (column.astype(str) != "")).any())
