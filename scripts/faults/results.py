"""What a run left, except what a clock gave: two runs are compared to the last bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

TIMES = ("_ms", "seconds", "speedup", "memory")
TIMED_NOTE = "scatters by"  # of a speed-up, between rounds of a measurement
_NUMBERS = (".pt", ".csv")
_SET_ASIDE = (".damaged", ".foreign")


def result(run: Path) -> dict[str, object]:
    """Return all that a run left except what a clock gave; notes may name its directory."""
    found: dict[str, object] = {}
    for file in sorted(path for path in run.rglob("*") if path.is_file()):
        key = str(file.relative_to(run))
        if file.suffix in _NUMBERS:
            found[key] = _read_numbers(file)
        elif file.name == "report.json":
            report = json.loads(file.read_text().replace(str(Path("outputs", run.name)), "RUN"))
            report["notes"] = [note for note in report["notes"] if TIMED_NOTE not in note]
            found[key] = {
                part: timeless(report[part]) if part == "metrics" else report[part]
                for part in ("metrics", "notes", "settings", "source")
            }
        else:
            found[key] = file.read_bytes()
    return found


def numbers(run: Path) -> dict[str, object]:
    """Return weights, tables and metrics of a finished run; None for what cannot be read.

    Notes and files that were set aside tell of a fault; they are no part of the result.
    """
    found: dict[str, object] = {}
    for file in sorted(path for path in run.glob("*/*") if path.is_file()):
        key = str(file.relative_to(run))
        if any(ending in file.name for ending in _SET_ASIDE) or file.name.startswith("."):
            continue
        try:
            if file.suffix in _NUMBERS:
                found[key] = _read_numbers(file)
            elif file.name == "report.json":
                found[key] = timeless(json.loads(file.read_text())["metrics"])
            elif file.name == "plan.json":
                found[key] = json.loads(file.read_text())
        except Exception:
            found[key] = None
    return found


def _read_numbers(file: Path) -> object:
    """Return the tensors of a file of torch, or the rows of a table."""
    if file.suffix == ".pt":
        return plain(torch.load(file, weights_only=True))
    with open(file, newline="") as lines:
        return [timeless(row) for row in csv.DictReader(lines)]


def runs_with_seed(folder: Path, seed: int) -> list[Path]:
    """Return the runs below a folder whose finetune has this seed; long names do not tell it."""
    reports = {
        file: json.loads(file.read_text()) for file in folder.glob("**/finetune/report.json")
    }
    return [
        file.parents[1] for file, report in reports.items() if report["settings"]["seed"] == seed
    ]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """Return the values that no clock gave."""
    return {key: value for key, value in row.items() if not any(mark in key for mark in TIMES)}


def plain(node: object) -> object:
    """Return tensors as their type, shape and bytes."""
    if isinstance(node, torch.Tensor):
        return str(node.dtype), tuple(node.shape), node.contiguous().numpy().tobytes()
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node
