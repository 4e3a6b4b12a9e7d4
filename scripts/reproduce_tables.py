"""Run the jobs behind a table, several at once, and set measured beside published figures.

    python scripts/reproduce_tables.py --table ssr_t1 --scale short --data ../shared/data

Interrupted, it continues: every finished stage is skipped. Nothing is filled in: a cell that was
not measured says so.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import every_experiment
import exact_resnets
import head_to_head
import head_to_head_tables
import hinge_resnet20
import hinge_resnet20_tables
import hinge_tables
import slasso_resnet20
import slasso_resnet20_tables
import slasso_tables
import slim_resnet20
import slim_resnet20_tables
import slimming_tables
import ssr_tables
import tables
import transcripts
from forked import prunekit_run
from tables import Job

from prunekit.console import complain, say
from prunekit.errors import PrunekitError, one_of
from prunekit.runs.files import read_json, write_json


@dataclass(frozen=True)
class Table:
    """One table: its scales by name, the jobs of a scale, and what writes it from their runs.

    `write` gets the directory of runs, the one for tables, and the scale. Jobs that depend on what
    others found are in `then`, round after round: each gets the scale, the directory of runs and
    the folder of the data once the jobs before it are done.
    """

    scales: Mapping[str, Any]
    jobs: Callable[[Any], list[Job]]
    write: Callable[[Path, Path, Any], None]
    then: tuple[Callable[[Any, Path, str], list[Job]], ...] = ()


TABLES = {
    "every": Table(every_experiment.SCALES, every_experiment.jobs, every_experiment.write_table),
    "head_to_head": Table(
        head_to_head.SCALES,
        head_to_head.choosing,
        head_to_head_tables.write_head_to_head,
        (head_to_head.trials, head_to_head.comparing),
    ),
    "head_to_head_lenet": Table(
        head_to_head.LENET_SCALES,
        head_to_head.choosing,
        head_to_head_tables.write_lenet,
        (head_to_head.trials, head_to_head.comparing),
    ),
    "hinge_resnet20": Table(
        exact_resnets.SCALES,
        hinge_resnet20.from_scratch,
        hinge_resnet20_tables.write_tables,
        (hinge_resnet20.from_weights,),
    ),
    **dict.fromkeys(
        ("ssr_t1", "ssr_table1"), Table(tables.SCALES, tables.table1, ssr_tables.write_table1)
    ),
    "ssr_f3": Table(tables.SCALES, tables.figure3, ssr_tables.write_figure3),
    "ssr_f56": Table(tables.SCALES, tables.figure5, ssr_tables.write_figure5),
    "ssr_lambda": Table(tables.SCALES, tables.lambda_groups, ssr_tables.write_lambda_groups),
    "slasso_resnet20": Table(
        exact_resnets.SCALES,
        slasso_resnet20.alone,
        slasso_resnet20_tables.write_tables,
        (slasso_resnet20.comparison,),
    ),
    "slim_resnet20": Table(
        slim_resnet20.SCALES,
        slim_resnet20.choosing,
        slim_resnet20_tables.write_tables,
        (slim_resnet20.judging,),
    ),
    "hinge_t1": Table(hinge_tables.SCALES, hinge_tables.table1, hinge_tables.write_table1),
    "ns_t1": Table(slimming_tables.SCALES, slimming_tables.table1, slimming_tables.write_table1),
    **{
        sheet.name: Table(slasso_tables.SCALES, sheet.jobs, sheet.write)
        for sheet in slasso_tables.SHEETS
    },
    **{one.name: Table(one.scales, one.jobs, one.write) for one in transcripts.TRANSCRIPTS},
}


def main() -> int:
    """Run, collect, write; exit code 1 when a job failed or nothing was measured."""
    arguments = parse()
    table, name = TABLES[arguments.table], arguments.scale
    if name not in table.scales:
        complain(f"--scale {name}: {arguments.table} has none; {one_of(name, table.scales)}")
        return 1
    scale, root = table.scales[name], Path(arguments.root)
    failed = [] if arguments.only_collect else run_table(table, scale, arguments)
    for job in failed:
        complain(f"failed: {job}; see {root / 'logs' / job.replace('/', '-')}.log")
    try:
        table.write(root, Path(arguments.out or root / "tables"), scale)
    except PrunekitError as error:
        complain(str(error))
        return 1
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ", ".join(sorted(TABLES))
    parser.add_argument(
        "--table", choices=sorted(TABLES), default="ssr_t1", metavar="TABLE", help=names
    )
    parser.add_argument("--scale", default="short", help="smoke, short, or paper")
    parser.add_argument("--data", default="data", help="dataset.root of every job")
    parser.add_argument("--root", default="outputs", help="where runs are kept")
    parser.add_argument("--out", help="where tables are written (default: ROOT/tables)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--only-collect", action="store_true", help="run nothing, write tables")
    return parser.parse_args()


def run_table(table: Table, scale: Any, arguments: argparse.Namespace) -> list[str]:
    """Run the jobs of a table, then those that depend on them; returns the names of failed ones."""
    shared = [] if arguments.scale == "smoke" else [f"dataset.root={arguments.data}"]
    failed = run_all(table.jobs(scale), arguments, shared)
    for following in table.then:
        if failed:
            break
        failed = run_all(following(scale, Path(arguments.root), arguments.data), arguments, shared)
    return failed


def run_all(jobs: list[Job], arguments: argparse.Namespace, shared: list[str]) -> list[str]:
    """Run every job once, after the one it starts from; returns the names of failed ones."""
    waiting = {job.name: job for job in jobs}
    done: set[str] = set()
    failed: list[str] = []
    running: dict[Future[int], str] = {}
    total, start = len(waiting), time.monotonic()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        while waiting or running:
            ready = [job for job in waiting.values() if job.waits_for() <= done]
            for job in ready[: arguments.jobs - len(running)]:
                running[pool.submit(run_one, job, arguments.root, shared)] = job.name
                del waiting[job.name]
            if not running:  # what is left waits for a job that failed
                return [*failed, *waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                (failed.append if future.result() else done.add)(name)
                minutes = (time.monotonic() - start) / 60
                word = "failed" if future.result() else "done"
                say(f"{len(done) + len(failed):>4}/{total} {minutes:6.1f} min  {word}  {name}")
    return failed


def run_one(job: Job, root: str, shared: list[str]) -> int:
    """One `prunekit run` in a process of its own, single-threaded, its output in a log."""
    log = Path(root) / "logs" / f"{job.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*job.command(root), "runtime.threads=1", *shared]
    receipt = log.with_suffix(".json")
    if is_finished(job, Path(root), receipt, arguments):
        return 0
    code = prunekit_run(arguments, log)
    if code == 0:
        write_json(receipt, {"arguments": arguments})
    return code


def is_finished(job: Job, root: Path, receipt: Path, arguments: list[str]) -> bool:
    """Whether the same command has succeeded before; asking prunekit takes seconds a job."""
    reports = [root / job.name / stage / "report.json" for stage in job.stages]
    if not receipt.is_file() or not all(report.is_file() for report in reports):
        return False
    return read_json(receipt).get("arguments") == arguments


if __name__ == "__main__":
    sys.exit(main())
