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
    options = parse()
    names = [every.NAME, *tables.names()] if options.table == ALL else [options.table]
    scales = {name: scales_of(name) for name in names}
    if options.table != ALL and options.scale not in scales[options.table]:
        hint = one_of(options.scale, scales[options.table])
        complain(f"--scale {options.scale}: {options.table} has none; {hint}")
        return 1
    for name in (name for name in names if options.scale not in scales[name]):
        say(f"{name} has no scale {options.scale}")
    codes = [reproduce(name, options) for name in names if options.scale in scales[name]]
    if not codes:
        complain(f"no table has a scale {options.scale}")
    return max(codes, default=1)


def parse() -> argparse.Namespace:
    """Read the command line."""
    names = [ALL, every.NAME, *tables.names()]
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reproduce", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--table", default="ssr_t1", help=", ".join(names))
    parser.add_argument("--scale", default="short", help="smoke, short, or paper")
    parser.add_argument("--data", default="data", help="dataset.root of every job")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where runs are kept")
    parser.add_argument("--out", type=Path, help="where tables are written (default: ROOT/tables)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--only-collect", action="store_true", help="run nothing, write tables")
    options = parser.parse_args()
    if options.table in FORMER:
        complain(f"--table {options.table} is called {FORMER[options.table]} now")
        raise SystemExit(2)
    if options.table not in names:
        parser.error(f"--table {options.table}: there is none; {one_of(options.table, names)}")
    return options


def scales_of(name: str) -> list[str]:
    """Return the scales that a table has."""
    return [*(every.SCALES if name == every.NAME else tables.contents(name)["scales"])]


def reproduce(name: str, options: argparse.Namespace) -> int:
    """Run and write one table; 1 when a job failed or nothing was measured."""
    failed = [] if options.only_collect else run(name, options)
    for job in failed:
        complain(f"failed: {job}; see {log_of(job, options.root)}")
    out = options.out or options.root / "tables"
    try:
        if name == every.NAME:
            every.write(options.scale, options.root, out)
        else:
            write(table_of(name, options), out)
    except PrunekitError as error:
        complain(str(error))
        return 1
    return 1 if failed else 0


def run(name: str, options: argparse.Namespace) -> list[str]:
    """Run the jobs of a table, rows after trials; returns the names of failed ones."""
    more = [] if options.scale == "smoke" else [f"dataset.root={options.data}"]
    if name == every.NAME:
        return run_all(every.jobs(options.scale), options.root, options.jobs, more)
    failed: list[str] = []
    for kind in ("trials", "rows"):
        table = table_of(name, options)
        jobs = table.jobs_of(getattr(table, kind))
        failed = failed or run_all(jobs, options.root, options.jobs, more)
    return failed


def table_of(name: str, options: argparse.Namespace) -> Table:
    """Return a table with what has been measured so far."""
    return Table.read(name, options.scale, options.root, str(Path(options.data).parent / "weights"))


if __name__ == "__main__":
    sys.exit(main())
