"""Run commands in forked children: `python -m scripts.faults.forked` reads one job a line.

A job is {"place": folder, "limit": seconds, "commands": [{"argv": [...], "delay": seconds,
"seconds": number, "trouble": {...}}]}; all commands of a job start at once. A command is killed
after its `seconds`, or ended by its `trouble`, see `troubles`; one that takes longer than the limit
is killed, too. The answer is a line with a list of [exit status, seconds, output, complaints] in
the order of the commands; -9 is the status of one that was killed. Everything slow is imported
once, before any fork.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock  # noqa: F401
import fvcore.nn  # noqa: F401
import torch._dynamo  # noqa: F401
from hydra.core.global_hydra import GlobalHydra

import prunekit.reporting.command
import prunekit.reporting.tables
import prunekit.stages.finetune
import prunekit.stages.pipeline
import prunekit.stages.pretrain
import prunekit.stages.prune
import prunekit.stages.sparsify  # noqa: F401
from prunekit.cli import main
from scripts.faults.troubles import bring_about

Answer = tuple[int, float, str, str]
DEFECT = 99  # the status of a command that ended with a traceback


@dataclass(frozen=True)
class Child:
    """A running command, the pipe that closes when it ends, and the folder of what it prints."""

    pid: int
    alive: int
    prints: Path
    began: float
    deadline: float

    def wait(self) -> Answer:
        """Wait for the end, or bring it about when the time is up."""
        rest = max(0.0, self.deadline - time.monotonic())
        ready, _, _ = select.select([self.alive], [], [], rest)  # readable when the child is gone
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.alive)
        texts = ((self.prints / name).read_text(errors="replace") for name in ("out", "err"))
        return os.waitstatus_to_exitcode(status), time.monotonic() - self.began, *texts


def start(command: dict[str, Any], place: str, limit: float, prints: Path) -> Child:
    """Start a command in the folder `place`."""
    alive, closed = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        _work(command, place, prints)
    os.close(closed)
    now = time.monotonic()
    return Child(pid, alive, prints, now, now + command.get("seconds", limit))


def _work(command: dict[str, Any], place: str, prints: Path) -> None:
    """Run the command in this process, which ends with it."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(prints / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    code = 0
    try:
        os.chdir(place)
        sys.path.insert(0, place)  # classes of a user's own are found from the command's folder
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        time.sleep(command.get("delay", 0.0))
        bring_about(command.get("trouble", {}))
        main(command["argv"])
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        code = DEFECT
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):  # what a limit on files leaves no room for is lost
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer one job after the other, until there are no more."""
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryDirectory() as folder:
            prints = [Path(folder, str(index)) for index in range(len(job["commands"]))]
            for path in prints:
                path.mkdir()
            pairs = zip(job["commands"], prints, strict=True)
            children = [start(c, job["place"], job["limit"], path) for c, path in pairs]
            answers = [child.wait() for child in children]
        sys.stdout.write(json.dumps(answers) + "\n")
        sys.stdout.flush()


def warm_up() -> None:
    """Let a command that trains nothing import the rest; autograd must not run before a fork."""
    before, argv = os.getcwd(), sys.argv
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        os.chdir(folder)
        main(["inspect", "runtime.threads=1"])
        os.chdir(before)
    sys.argv = argv
    GlobalHydra.instance().clear()


if __name__ == "__main__":
    warm_up()
    serve()
