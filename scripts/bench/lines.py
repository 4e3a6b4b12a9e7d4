"""Results that come line by line: csv files that grow, and processes that may end badly."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prunekit.console import say, table
from prunekit.runs.files import write_csv

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
Row = dict[str, Any]


def read(path: Path, kinds: Mapping[str, Callable[[str], Any]] | None = None) -> list[Row]:
    """Return the rows of a csv file, none where there is no file; `kinds` are types of columns."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return [
            {name: (kinds or {}).get(name, str)(value) for name, value in row.items()}
            for row in csv.DictReader(lines)
        ]


def collect(path: Path, title: str, rows: Iterable[Row]) -> None:
    """Write rows to a csv file as they come, then show them all."""
    done: list[Row] = []
    for row in rows:
        done.append(row)
        write_csv(path, done)
        say(" ".join(f"{key} {value}" for key, value in row.items()))
    table(title, [*done[0]], [[*map(str, row.values())] for row in done])


def apart(module: str, words: Sequence[str], seconds: float) -> tuple[str, str]:
    """Run a module of this package in a process of its own, on one thread.

    Returns what it printed, and the last line of its complaints or why it is not done.
    """
    line = [sys.executable, "-m", f"scripts.bench.{module}", *words]
    quiet = {"OMP_NUM_THREADS": "1", "YOLO_VERBOSE": "False"}
    settings = {"cwd": ROOT, "env": {**os.environ, **quiet}, "capture_output": True, "text": True}
    try:
        ended = subprocess.run(line, timeout=seconds, check=False, **settings)
    except subprocess.TimeoutExpired:
        return "", f"not done after {seconds:.0f} s"
    return ended.stdout, (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[
        -1
    ]
