"""Record what prunekit computes, and compare it with what an earlier version computed.

    python -m scripts.golden record             # kept units, to tests/golden/kept
    python -m scripts.golden compare            # kept units now beside those files
    python -m scripts.golden compare --base ../before    # beside another checkout's, made here
    python -m scripts.golden weights --base ../before    # smoke runs of every experiment file
    python -m scripts.golden files              # model files and run directories, made anew

Only names that stay are used: commands, `prunekit.prune`, classes of settings.
Interrupted, all but `files` continue where they were; delete build/golden to start anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from scripts.golden import files, kept, weights
from scripts.golden.networks import NETWORKS

HERE = Path(__file__).resolve().parents[2]
RECORD = """
import sys
sys.path.insert(0, {here!r})
import scripts.golden  # of this checkout, prunekit of the other one
sys.path.insert(0, {checkout!r})
from scripts.golden.__main__ import main
raise SystemExit(main())
"""
PARTS = (*NETWORKS, kept.DEFAULTS)


def main() -> int:
    """Do what the first argument says; returns 1 where something differs."""
    arguments = _arguments()
    if arguments.action == "files":
        files.make(arguments.out)
        return 0
    if arguments.action == "record":
        return _record(arguments.out, arguments.only)
    if arguments.action == "weights":
        folders = {"base": arguments.base.resolve(), "now": HERE}
        sides = (weights.Side(place, arguments.work / s) for s, place in folders.items())
        return weights.compare((*sides,), arguments.only, arguments.processes, _say)
    return _compare(arguments.base, arguments.work, arguments.only)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.golden", description=__doc__.splitlines()[0]
    )
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("files", help="write model files and run directories anew")
    make.add_argument("--out", type=Path, default=files.FILES)
    record = actions.add_parser("record", help="write what is kept; delete a file to write it anew")
    record.add_argument("--out", type=Path, default=kept.KEPT)
    compare = actions.add_parser("compare", help="set what is kept now beside what was recorded")
    compare.add_argument("--base", type=Path, help="a checkout in place of the recorded files")
    compare.add_argument("--work", type=Path, default=HERE / "build" / "golden")
    both = actions.add_parser("weights", help="networks of every experiment's smoke run")
    both.add_argument("--base", type=Path, required=True, help="the checkout to compare with")
    both.add_argument("--work", type=Path, default=HERE / "build" / "golden" / "weights")
    both.add_argument("--only", nargs="+", default=(), metavar="EXPERIMENT")
    both.add_argument("--processes", type=int, default=1, help="experiments at a time")
    for action in (record, compare):
        action.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    return parser.parse_args()


def _record(out: Path, names: tuple[str, ...]) -> int:
    torch.set_num_threads(1)
    for name in names:
        if name != kept.DEFAULTS:
            kept.record(name, out, _say)
        elif not (out / f"{name}.json").is_file():
            kept.record_defaults(out, _say)
    return 0


def _compare(base: Path | None, work: Path, names: tuple[str, ...]) -> int:
    sides = {"now": HERE} | ({} if base is None else {"base": base.resolve()})
    for side, checkout in sides.items():
        code = RECORD.format(here=str(HERE), checkout=str(checkout))
        line = [sys.executable, "-c", code, "record", "--out", str(work / side), "--only", *names]
        places = {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        subprocess.run(line, env={**os.environ, **places}, check=True)
    counted: Counter[str] = Counter()
    for name in names:
        old = work / "base" if base else kept.KEPT
        pair = (kept.read(place / f"{name}.json") for place in (old, work / "now"))
        for kind, text in kept.differences(*pair):
            counted[kind] += 1
            print(f"{name} ({kind}): {text}")
    counts = ", ".join(f"{count} in {kind}" for kind, count in counted.items())
    print(f"differences: {counts or 'none'}")
    return int(bool(counted["kept"] or (base and counted["fragile"])))


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
