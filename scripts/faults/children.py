"""Commands of prunekit in processes of their own, to which something may happen meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 120.0  # seconds after which a command counts as one that hangs


@dataclass(frozen=True)
class Command:
    """A command line, and what happens while it runs: see `troubles`.

    It starts `delay` seconds later than the others of its job, and is killed after `seconds`.
    """

    argv: Sequence[str]
    trouble: dict[str, object] = field(default_factory=dict)
    delay: float = 0.0
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what `forked` reads."""
        values: dict[str, Any] = {"argv": [*self.argv], "trouble": self.trouble}
        values["delay"] = self.delay
        return values if self.seconds is None else values | {"seconds": self.seconds}


@dataclass(frozen=True)
class Ended:
    """The exit status of a command (-9: killed), its seconds, and everything it printed."""

    code: int
    seconds: float
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """Return the lines that it printed anywhere."""
        return [line for line in (*self.err.splitlines(), *self.out.splitlines()) if line.strip()]

    @property
    def last_line(self) -> str:
        """Return the last line of its complaints that is not empty."""
        complaints = [line for line in self.err.splitlines() if line.strip()]
        return complaints[-1].strip() if complaints else ""


class Children:
    """A process that forks one child for every command; use it in a `with` block."""

    def __enter__(self) -> Children:
        """Start the process."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment.pop("HYDRA_FULL_ERROR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.faults.forked"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def run(self, place: Path, *argv: str, **trouble: object) -> Ended:
        """Run one command in the folder `place`."""
        (ended,) = self.run_all(place, [Command(argv, trouble)])
        return ended

    def run_all(self, place: Path, commands: Sequence[Command]) -> list[Ended]:
        """Run commands at the same time."""
        job = {"place": str(place), "limit": LIMIT, "commands": [c.to_dict() for c in commands]}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return [Ended(*answer) for answer in json.loads(self.process.stdout.readline())]
