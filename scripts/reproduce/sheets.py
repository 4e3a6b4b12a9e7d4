"""Sheets of a table: measured beside published as csv, as markdown and on the screen.

Keys of a sheet in a file:

- `name` of its csv file, or a `suffix` to the table's; `title` on the screen; `text` above it, in
  which `<scale>` is what the scale says of itself, and `<reading>` a text that tables share
- `select`: patterns of rows, or several, whose rows are put one after another; `of: trials` takes
  the rows of trials
- `head`: columns of text, or `paper` for all that was published
- `columns`: columns of figures (see `measured`). The number of seeds comes before them, unless
  `seeds` is one of them, or null. `{text: TEMPLATE}` is text, `{overlap: PATTERNS}` the share of
  kept channels that the runs of another row keep too
- `done`: the stage that a run must have finished; `only_measured` leaves out rows without one
- `rank`: rows are ranked by a figure, within rows that have the same values (see `ranking`)
- `pairs`: the sheet says what beats what (see `verdicts`)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.console import table as show
from prunekit.errors import ArtifactError
from prunekit.runs.files import write_csv, write_text
from scripts.reproduce.figures import FIGURES
from scripts.reproduce.hits import KeptHits
from scripts.reproduce.measured import NOT_RUN, Column, Measured, overlaps
from scripts.reproduce.ranking import ranked
from scripts.reproduce.rows import Row, fits, head_of, listed, text_of
from scripts.reproduce.tables import Table
from scripts.reproduce.verdicts import verdicts

Cells = dict[str, Any]
Sheet = Mapping[str, Any]


def write(table: Table, out: Path) -> None:
    """Write all sheets of a table, and its pictures.

    Where the runs are gone and their hits were kept, only sheets of verdicts are written. Raises
    ArtifactError where nothing was measured: before anything is written, unless the table prints a
    published one whole, which is written all the same.
    """
    rows = [*table.rows, *table.trials]
    is_measured = any(table.measured(row, table.content.get("done", ())) for row in rows)
    hits = KeptHits.beside(out, table.name, table.root)
    if not is_measured and hits.file.is_file():
        for sheet in table.sheets():
            if "pairs" in sheet:
                publish(out, sheet, "", cells_of(table, sheet, hits))
        return
    if not is_measured and table.content.get("head") != "paper":
        raise ArtifactError("nothing was measured for this table; run without --only-collect")
    words = {"scale": table.scale.get("text", ""), "reading": table.content.get("reading", "")}
    parts = [
        publish(out, sheet, text_of(sheet.get("text", ""), words), cells_of(table, sheet, hits))
        for sheet in table.sheets()
    ]
    if any("pairs" in sheet or "rank" in sheet for sheet in table.sheets()):
        hits.keep(one for row in rows if table.is_run(row) for one in table.runs(row))
    if file := table.content.get("file", table.name):
        write_markdown(out / f"{file}.md", *parts)
    for name, settings in table.content.get("figures", {}).items():
        FIGURES[name](table, out, settings)
    if not is_measured:
        runs = any(map(table.is_run, rows))
        reason = "run without --only-collect" if runs else "this scale runs nothing"
        raise ArtifactError(f"nothing was measured for {table.name}: {reason}")


def cells_of(table: Table, sheet: Sheet, hits: KeptHits) -> list[Cells]:
    """Return the rows of a sheet as cells by column."""
    every = table.trials if sheet.get("of") == "trials" else table.rows
    rows = [row for part in listed(sheet.get("select", {})) for row in every if fits(row, part)]
    if "pairs" in sheet:
        return [*verdicts(table, sheet, [row for row in rows if table.is_run(row)], hits)]
    rows = [row for row in rows if "fact" in row or "needs" in row or table.is_part(row)]
    ordered = ranked(table, sheet["rank"], rows, hits) if "rank" in sheet else rows
    return [*_lines(table, sheet, ordered)]


def _lines(table: Table, sheet: Sheet, rows: Sequence[Row]) -> Iterator[Cells]:
    has_needs = any("needs" in row for row in rows)
    for row in rows:
        done = table.measured(row, sheet.get("done", ()))
        if done or not sheet.get("only_measured"):
            needs = {"needs": "" if done else text_of(row["needs"], row)} if has_needs else {}
            head = head_of(sheet["head"], row)
            yield head | _figures(table, sheet, row, done) | row.get("behind", {}) | needs


def _figures(table: Table, sheet: Sheet, row: Row, done: Sequence[Measured]) -> Cells:
    """Return the number of seeds and the columns of figures; a row may have `cells` of its own."""
    columns = {"seeds": "seeds"} if "seeds" not in sheet["columns"] else {}
    own = row.get("cells", {})
    columns |= {title: own.get(title, spec) for title, spec in sheet["columns"].items()}
    jobs = Measured(table.root, tuple(table.jobs(row, table.seeds(row)[0])))
    cells: Cells = {}
    for title, spec in columns.items():
        if spec == "seeds":
            cells[title] = len(done)
        elif isinstance(spec, Mapping):
            cells[title] = _special(table, spec, row, done)
        elif spec is not None:
            cells[title] = Column.of(spec).cell(done, jobs, row.get("blank", NOT_RUN))
    return cells


def _special(table: Table, spec: Mapping[str, Any], row: Row, done: Sequence[Measured]) -> str:
    """Return text, or the share of kept channels that the runs of another row keep too."""
    if "text" in spec:
        return text_of(spec["text"], row)
    patterns = {name: text_of(value, row) for name, value in spec["overlap"].items()}
    other = next(other for other in table.rows if fits(other, patterns))
    pairs = zip(table.runs(row), table.runs(other), strict=True)
    return overlaps([pair for pair in pairs if pair[0] in done])


def publish(out: Path, sheet: Sheet, head: str, rows: Sequence[Cells]) -> str:
    """Write the rows as csv, show them, and return them as markdown below a text.

    Columns are those of the first row; no rows, no table.
    """
    if not rows:
        return ""
    columns = list(rows[0])
    write_csv(out / f"{sheet['name']}.csv", rows)
    lines = [[text(row[column]) for column in columns] for row in rows]
    show(sheet["title"], columns, lines)
    return f"{head}\n\n{markdown(columns, lines)}" if head else markdown(columns, lines)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return the lines as a markdown table."""
    every = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in every)


def write_markdown(file: Path, *parts: str) -> None:
    """Write the parts that are not empty, an empty line between them."""
    content = "\n".join(part for part in parts if part)
    write_text(file, lambda stream: stream.write(content))


def text(value: object) -> str:
    """Return a cell as it is shown: whole numbers with commas."""
    return f"{value:,}" if isinstance(value, int) else str(value)
