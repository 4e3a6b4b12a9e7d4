"""Headings and formats of metrics, and tables as markdown, LaTeX and csv."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.runs.files import write_text
from prunekit.text import guard_formula, visible

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# metric, heading, format
METRIC_COLUMNS = (
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
# metric, heading: the dense network's value divided by the narrow one's
RATIO_COLUMNS = (
    ("params", "params ratio"),
    ("macs", "MACs ratio"),
    ("cpu_ms", "CPU speed-up"),
    ("cpu_ms_compile", "compiled speed-up"),
    ("cpu_ms_onnxruntime", "onnxruntime speed-up"),
    ("gpu_ms", "GPU speed-up"),
    ("gpu_ms_compile", "GPU compiled speed-up"),
)
SMALL_NORMS = ("1e-02", "1e-03", "1e-04", "1e-05", "1e-06")  # limits in the log of sparsify
# columns of a summary that are printed
SUMMARY_COLUMNS = (
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
# further columns of a summary, which are only written to files
_FILE_COLUMNS = (
    ("dense_top1", "dense %", "{:.2f}"),
    ("params_share", "params kept", "{:.1%}"),
    ("macs_share", "MACs kept", "{:.1%}"),
    ("tuned_top1", "fine-tuned %", "{:.2f}"),
    ("gpu_speedup", "GPU speed-up", "{:.1f}x"),
    *((f"below/{limit}", f"below {limit}", "{:.1%}") for limit in SMALL_NORMS),
)
_FORMATS = {
    key: (heading, form)
    for key, heading, form in (*METRIC_COLUMNS, *SUMMARY_COLUMNS, *_FILE_COLUMNS)
}
_SETTINGS = frozenset({"model", "lam", "ratio", "keep", "seed"})
# fingerprints and texts that are too long for a column
_CSV_ONLY = frozenset({"setting", "data", "timing", "continued", "command"})
ENDINGS = (".csv", ".md", ".tex")
_MARKDOWN = frozenset("\\`*[]<>&|~$")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{sign: f"{{{sign}}}" for sign in "[*"},  # behind the end of a line they would be arguments
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


@dataclass(frozen=True)
class TextTable:
    """A table of formatted text: keys and headings of columns, which are numeric, and lines."""

    keys: tuple[str, ...]
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    lines: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, table: DataFrame, keys: Iterable[str] | None = None) -> TextTable:
        """Format the columns of a data frame that hold a value, all or those given by `keys`."""
        names = [str(key) for key in table if key not in _CSV_ONLY] if keys is None else keys
        filled = [key for key in names if key in table and has_values(table[key])]
        formats = [_FORMATS.get(key, (key, "{}")) for key in filled]
        columns = [
            [format_value(value, form) for value in table[key]]
            for key, (_, form) in zip(filled, formats, strict=True)
        ]
        return cls(
            tuple(filled),
            tuple(heading for heading, _ in formats),
            tuple(to_number(table[key].dropna().iloc[0]) is not None for key in filled),
            tuple(zip(*columns, strict=True)),
        )

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, object]]) -> TextTable:
        """Format records with the columns of the first one; integers get thousands separators."""
        keys = tuple(records[0]) if records else ()
        lines = tuple(tuple(_plain_text(record[key]) for key in keys) for record in records)
        return cls(keys, keys, (False,) * len(keys), lines)


def summary_text(table: DataFrame) -> TextTable:
    """Format the columns of a summary that are printed."""
    return TextTable.of(table, summary_columns(table))


def summary_columns(table: DataFrame) -> list[str]:
    """Return the printed columns of a summary, without settings that are the same in all runs."""
    keys = [key for key, _, _ in SUMMARY_COLUMNS if key in table]
    return [key for key in keys if key not in _SETTINGS or table[key].nunique() > 1]


def compare_networks(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines of a table that compares every network with the first one.

    Records hold metrics and a `network` label. A metric that a network lacks is shown as "-".
    """
    present = {key for record in records for key, v in record.items() if to_number(v) is not None}
    metrics = [column for column in METRIC_COLUMNS if column[0] in present]
    ratios = [column for column in RATIO_COLUMNS if column[0] in present]
    headings = ["network", *(heading for _, heading, _ in metrics), *(h for _, h in ratios)]
    lines = [
        [
            str(record.get("network", "")),
            *(format_value(record.get(key), form) for key, _, form in metrics),
            *(format_value(ratio(records[0].get(k), record.get(k)), "{:.1f}x") for k, _ in ratios),
        ]
        for record in records
    ]
    return headings, lines


def write_table(
    table: DataFrame, path: str | Path, parts: Sequence[tuple[str, DataFrame]] = ()
) -> None:
    """Write a data frame as csv (full precision), markdown or LaTeX, by the ending of `path`.

    Markdown and LaTeX hold one table for each of the titled `parts`, csv always the whole table.
    Text that a reader of the file would interpret is escaped; in csv, text that begins like a
    formula gets an apostrophe in front.
    """
    file, parts = Path(path), parts or [("", table)]
    if file.suffix == ".csv":
        plain = table.map(lambda value: _csv_cell(value) if isinstance(value, str) else value)
        write_text(file, lambda out: plain.to_csv(out, index=False, lineterminator="\n"))
    elif file.suffix == ".md":
        texts = [_markdown_part(part, title if len(parts) > 1 else "") for title, part in parts]
        write_text(file, lambda out: out.write("\n".join(texts)))
    elif file.suffix == ".tex":
        write_text(file, lambda out: out.write("\n".join(latex(part, t) for t, part in parts)))
    else:
        raise ArtifactError(
            f"{file} must end in .csv, .md or .tex, which says how to write the table"
        )


def markdown(table: DataFrame | TextTable) -> str:
    """Return a markdown table.

    A data frame is formatted as in the printed summary, without fingerprints and commands.
    """
    text = table if isinstance(table, TextTable) else TextTable.of(table)
    rule = tuple("---:" if numeric else "---" for numeric in text.numeric)
    lines = [_markdown_line(line) for line in (text.headings, *text.lines)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]]) + "\n"


def latex(table: DataFrame | TextTable, title: str = "") -> str:
    r"""Return a LaTeX table with the rules of booktabs; it needs \usepackage{booktabs}."""
    text = table if isinstance(table, TextTable) else TextTable.of(table)
    columns = "".join("r" if numeric else "l" for numeric in text.numeric)
    body = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _latex_line(text.headings),
        r"\midrule",
        *map(_latex_line, text.lines),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    caption = [rf"\caption{{{escape_latex(title)}}}"] if title else []
    return "\n".join([r"\begin{table}", r"\centering", *caption, *body, r"\end{table}"]) + "\n"


def escape_latex(text: str) -> str:
    """Return text with every character that LaTeX would interpret escaped."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in visible(text))
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash


def escape_markdown(text: str) -> str:
    """Return text with every character that markdown, or html in it, would interpret escaped."""
    escaped = "".join(f"\\{sign}" if sign in _MARKDOWN else sign for sign in visible(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # inside of a word it is plain


def to_number(value: Any) -> float | None:
    """Return a finite number, also from the text of a csv file; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def ratio(dense: object, narrow: object) -> float | None:
    """Return dense divided by narrow; None if either is no number, or narrow is zero."""
    above, below = to_number(dense), to_number(narrow)
    return above / below if above is not None and below else None


def difference(narrow: object, dense: object) -> float | None:
    """Return narrow minus dense; None if either is no number."""
    left, right = to_number(narrow), to_number(dense)
    return left - right if left is not None and right is not None else None


def format_value(value: object, form: str) -> str:
    """Format a value; "-" if the format is numeric and the value is no finite number."""
    if form == "{}":
        return "" if value is None or value != value else str(value)
    number = to_number(value)
    return "-" if number is None else form.format(number)


def has_values(column: Series) -> bool:
    """Return whether any entry of a column is neither missing nor empty text."""
    return bool((column.notna() & (column.astype(str) != "")).any())


def _plain_text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _markdown_part(table: DataFrame, title: str) -> str:
    return f"**{escape_markdown(title)}**\n\n{markdown(table)}" if title else markdown(table)


def _markdown_line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(escape_markdown, cells))} |"


def _csv_cell(text: str) -> str:
    return guard_formula(visible(text, keep="\n"))


def _latex_line(cells: tuple[str, ...]) -> str:
    return " & ".join(map(escape_latex, cells)) + r" \\"
