"""Tables as text that other programs read: markdown and LaTeX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.reporting.columns import Cells

if TYPE_CHECKING:
    from pandas import DataFrame

_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def markdown(table: DataFrame) -> str:
    """The frame as a markdown table; numbers as in the printed summary, unknown ones plainly.

    Fingerprints of settings and commands are left to csv files.
    """
    cells = Cells.of(table)
    rule = tuple("---:" if numeric else "---" for numeric in cells.numeric)
    lines = [_cells_of_markdown(line) for line in (cells.headings, *cells.lines)]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]]) + "\n"


def latex(table: DataFrame, title: str = "") -> str:
    r"""The frame as a LaTeX table with the rules of booktabs; needs \usepackage{booktabs}."""
    cells = Cells.of(table)
    columns = "".join("r" if numeric else "l" for numeric in cells.numeric)
    body = [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _cells_of_latex(cells.headings),
        r"\midrule",
        *map(_cells_of_latex, cells.lines),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    caption = [rf"\caption{{{escaped(title)}}}"] if title else []
    return "\n".join([r"\begin{table}", r"\centering", *caption, *body, r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX prints it: no sign of it is a command."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _cells_of_markdown(line: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |"


def _cells_of_latex(line: tuple[str, ...]) -> str:
    return " & ".join(map(escaped, line)) + r" \\"
