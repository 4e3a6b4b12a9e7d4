"""Findings as a table: one line for every kind, one column for every outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from prunekit.runs.files import write_text
from scripts.faults.campaign import Line
from scripts.faults.kinds import KINDS
from scripts.faults.trial import Outcome

BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"


def as_markdown(lines: Sequence[Line]) -> str:
    """Return the number of findings for each kind and outcome."""
    columns = [outcome for outcome in Outcome if outcome is not Outcome.SKIPPED]
    rows = [["kind", "faults", *(outcome.value for outcome in columns)], ["---"] * 9]
    for kind in KINDS:
        counts = Counter(line.outcome for line in lines if line.kind == kind.name)
        if counts:
            rows.append([kind.title, *_cells(counts, columns)])
    total = Counter(line.outcome for line in lines)
    rows.append(["all", *_cells(total, columns)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    skipped = [f"{line.name} ({line.line})" for line in lines if line.outcome is Outcome.SKIPPED]
    return f"{table}\n\nSkipped here: {'; '.join(skipped)}." if skipped else table


def write_into(page: Path, table: str) -> None:
    """Replace the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    write_text(page, lambda file: file.write(f"{before}{BEGIN}\n{table}\n{END}{after}"))


def _cells(counts: Counter[Outcome], columns: Sequence[Outcome]) -> list[str]:
    return [str(counts.total()), *(str(counts[outcome]) for outcome in columns)]
