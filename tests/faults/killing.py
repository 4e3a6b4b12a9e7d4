"""Run commands in forked children and kill them: `python killing.py` reads one job a line.

A job is {"argv": [...], "seconds": 0.5} or {"argv": [...], "writes": 3}: kill it after so long, or
right after so many files got their names; neither: let it end. The answer is a line with the exit
status (-9: killed) and the seconds it took. Everything slow is imported once, before any fork.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

import fvcore.nn  # noqa: F401
import hydra.core.global_hydra  # noqa: F401
import torch  # noqa: F401

import prunekit.reporting.tables
import prunekit.stages.pipeline  # noqa: F401
from prunekit.cli import main


def child(argv: list[str], writes: int | None) -> None:
    """Run the command in this process, which ends with it."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    if writes is not None:
        die_after(writes)
    code = 0
    try:
        main(argv)
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        sys.stderr.write(f"{error!r}\n")
        code = 99
    sys.stderr.flush()
    os._exit(code)


def die_after(writes: int) -> None:
    """Die as soon as so many files have taken their names."""
    replace, left = os.replace, [writes]

    def counted(draft: object, path: object) -> None:
        replace(draft, path)
        # these two are written again, from the checkpoint, by every process that goes on
        left[0] -= os.path.basename(str(path)) not in ("metrics.csv", "seconds")
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted


def attempt(job: dict) -> tuple[int, float]:
    """Exit status and seconds of one attempt."""
    began = time.monotonic()
    alive, closed = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        child(job["argv"], job.get("writes"))
    os.close(closed)
    select.select([alive], [], [], job.get("seconds"))  # readable when the child is gone
    if "seconds" in job:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(alive)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), flush=True)
