"""Run the jobs behind a table, several at once, and set measured beside published figures.

    python -m scripts.reproduce --table ssr_t1 --scale short --data ../shared/data

Interrupted, it continues: every finished stage is skipped. Nothing is filled in: a cell that was
not measured says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prunekit.console import complain, say
from prunekit.errors import PrunekitError, one_of
from scripts.reproduce import every, tables
from scripts.reproduce.jobs import log_of, run_all
from scripts.reproduce.sheets import write
from scripts.reproduce.tables import Table

ALL = "all"
FORMER = {"every": every.NAME}  # tables that had another name


def main() -> int:
    """Run, collect, write; exit code 1 when a job failed or nothing was measured."""
    asked = parse()
    names = [every.NAME, *tables.names()] if asked.table == ALL else [asked.table]
    known = {name: scales_of(name) for name in names}
    if asked.table != ALL and asked.scale not in known[asked.table]:
        scales = one_of(asked.scale, known[asked.table])
        complain(f"--scale {asked.scale}: {asked.table} has none; {scales}")
        return 1
    for name in (name for name in names if asked.scale not in known[name]):
        say(f"{name} has no scale {asked.scale}")
    return max([reproduce(name, asked) for name in names if asked.scale in known[name]])


def parse() -> argparse.Namespace:
    """Read the command line."""
    names = [ALL, every.NAME, *tables.names()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", default="ssr_t1", help=", ".join(names))
    parser.add_argument("--scale", default="short", help="smoke, short, or paper")
    parser.add_argument("--data", default="data", help="dataset.root of every job")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where runs are kept")
    parser.add_argument("--out", type=Path, help="where tables are written (default: ROOT/tables)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--only-collect", action="store_true", help="run nothing, write tables")
    asked = parser.parse_args()
    if asked.table in FORMER:
        parser.error(f"--table {asked.table} is called {FORMER[asked.table]} now")
    if asked.table not in names:
        parser.error(f"--table {asked.table}: there is none; {one_of(asked.table, names)}")
    return asked


def scales_of(name: str) -> list[str]:
    """Return the scales that a table has."""
    return [*(every.SCALES if name == every.NAME else tables.contents(name)["scales"])]


def reproduce(name: str, asked: argparse.Namespace) -> int:
    """Run and write one table; 1 when a job failed or nothing was measured."""
    failed = [] if asked.only_collect else run(name, asked)
    for job in failed:
        complain(f"failed: {job}; see {log_of(job, asked.root)}")
    out = asked.out or asked.root / "tables"
    try:
        if name == every.NAME:
            every.write(asked.scale, asked.root, out)
        else:
            write(table_of(name, asked), out)
    except PrunekitError as error:
        complain(str(error))
        return 1
    return 1 if failed else 0


def run(name: str, asked: argparse.Namespace) -> list[str]:
    """Run the jobs of a table, rows after trials; returns the names of failed ones."""
    more = [] if asked.scale == "smoke" else [f"dataset.root={asked.data}"]
    if name == every.NAME:
        return run_all(every.jobs(asked.scale), asked.root, asked.jobs, more)
    failed: list[str] = []
    for kind in ("trials", "rows"):
        table = table_of(name, asked)
        jobs = table.jobs_of(getattr(table, kind))
        failed = failed or run_all(jobs, asked.root, asked.jobs, more)
    return failed


def table_of(name: str, asked: argparse.Namespace) -> Table:
    """Return a table with what has been measured so far."""
    return Table.read(name, asked.scale, asked.root, str(Path(asked.data).parent / "weights"))


if __name__ == "__main__":
    sys.exit(main())
