"""Speed of training, similarities, lassos and reports, each with its bound.

    python -m scripts.bench [training similarity lasso report] [--rounds 4] [--csv FILE]

Ratios are medians over rounds inside one run: both sides are timed in alternation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunekit.console import say, table
from prunekit.runs.files import write_csv
from scripts.bench import lasso, report, similarity, training
from scripts.bench.ratios import Row

SUITES = {
    "training": training.rows,
    "similarity": similarity.rows,
    "lasso": lasso.rows,
    "report": report.rows,
}


def main() -> int:
    """Print every row of the suites with its bound; exit code 1 when one is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    if unknown := {*options.suites} - {*SUITES}:
        parser.error(f"no such suites: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    rows: list[Row] = []
    for name in options.suites or SUITES:
        lines = [*SUITES[name](options.rounds)]
        table(name, list(lines[0]), [[str(cell) for cell in line.values()] for line in lines])
        rows += lines
    if options.csv:
        write_csv(options.csv, rows)
    missed = [str(row["what"]) for row in rows if row["holds"] == "no"]
    say(f"missed: {', '.join(missed)}" if missed else "every bound holds")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
