"""A job is one `prunekit run`; jobs run several at once, each after those it depends on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

from prunekit.console import say
from prunekit.runs.files import read_json, write_json
from scripts.reproduce.forked import prunekit_run

TIMED = "measure"  # the stage that times networks


@dataclass(frozen=True)
class Job:
    """One `prunekit run`: where it goes, what it is started with, what must be there before.

    It starts from the last model of the run that it comes `after`, or from that of a `stage`, and
    reads what the runs that it `needs` have written.
    """

    name: str
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    after: str | None = None
    stage: str = ""
    needs: tuple[str, ...] = ()

    def waits_for(self) -> set[str]:
        """Return the runs that must be done before."""
        return {*self.needs, *((self.after,) if self.after else ())}

    def command(self, root: str) -> list[str]:
        """Return the arguments after `prunekit run`."""
        place = "/".join(filter(None, (root, self.after, self.stage)))
        source = [f"source={place}"] if self.after else []
        stages = f"pipeline=[{','.join(self.stages)}]"
        return [f"root={root}", f"name={self.name}", stages, *self.overrides, *source]


def run_all(jobs: Sequence[Job], root: Path, processes: int, more: Sequence[str]) -> list[str]:
    """Run every job once, after those it waits for; returns the names of failed ones.

    `more` are overrides of all jobs. A job that waits for a failed one counts as failed. Networks
    are timed in the end, one job at a time, so that no other job slows them down.
    """
    untimed = [replace(job, stages=tuple(s for s in job.stages if s != TIMED)) for job in jobs]
    done = {job.name for job in untimed if not job.stages}
    failed = _run([job for job in untimed if job.stages], root, processes, more, done)
    timed = [replace(job, stages=(TIMED,)) for job in jobs if TIMED in job.stages]
    left = [job for job in timed if job.name not in failed and job.waits_for() <= done]
    return [*failed, *_run(left, root, 1, more, {*done} - {job.name for job in left})]


def _run(
    jobs: Sequence[Job], root: Path, processes: int, more: Sequence[str], done: set[str]
) -> list[str]:
    """Run jobs, several at once, and add those that succeed to `done`; returns failed ones."""
    waiting = {job.name: job for job in jobs}
    failed: list[str] = []
    running: dict[Future[int], str] = {}
    total, start = len(waiting), time.monotonic()
    with ThreadPoolExecutor(processes) as pool:
        while waiting or running:
            ready = [job for job in waiting.values() if job.waits_for() <= done]
            for job in ready[: processes - len(running)]:
                running[pool.submit(run_one, job, root, more)] = job.name
                del waiting[job.name]
            if not running:  # what is left waits for a job that failed
                return [*failed, *waiting]
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name, code = running.pop(future), future.result()
                (failed.append if code else done.add)(name)
                minutes = (time.monotonic() - start) / 60
                count, word = total - len(waiting) - len(running), "failed" if code else "done"
                say(f"{count:>4}/{total} {minutes:6.1f} min  {word}  {name}")
    return failed


def run_one(job: Job, root: Path, more: Sequence[str]) -> int:
    """Run a job in a process of its own, single-threaded, its output in a log."""
    log = log_of(f"{job.name}-{TIMED}" if job.stages == (TIMED,) else job.name, root)
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [*job.command(str(root)), "runtime.threads=1", *more]
    receipt = log.with_suffix(".json")
    if is_finished(job, root, receipt, arguments):
        return 0
    code = prunekit_run(arguments, log)
    if code == 0:
        write_json(receipt, {"arguments": arguments})
    return code


def log_of(name: str, root: Path) -> Path:
    """Return the file with the output of a run."""
    return root / "logs" / f"{name.replace('/', '-')}.log"


def is_finished(job: Job, root: Path, receipt: Path, arguments: list[str]) -> bool:
    """Tell whether the same command has succeeded before; asking prunekit takes seconds a job."""
    reports = [root / job.name / stage / "report.json" for stage in job.stages]
    if not receipt.is_file() or not all(report.is_file() for report in reports):
        return False
    return read_json(receipt).get("arguments") == arguments
