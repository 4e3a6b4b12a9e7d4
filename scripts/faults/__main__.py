"""Do faults to small runs, and say what became of the runs.

    python -m scripts.faults                         # all of them, to docs/results/faults.csv
    python -m scripts.faults --kind kill --kind names
    python -m scripts.faults --minutes 3 --out build/faults/now.csv    # as many as there is time
    python -m scripts.faults --share 0.1             # every tenth of each kind

Interrupted, it continues where it was, and does again what ended badly; --anew starts over. The
exit status is 1 where a result was silently wrong or lost, code of a file was run, or a message
could not be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from prunekit.console import complain, say
from scripts.faults.campaign import carry_out, interleaved, sample, shuffled
from scripts.faults.kinds import KINDS, all_faults
from scripts.faults.table import as_markdown, write_into

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "docs" / "results" / "faults.csv"
PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Do the faults that the arguments name; return 1 where something must not have happened."""
    arguments = _parser().parse_args()
    kinds = arguments.kind or [kind.name for kind in KINDS]
    faults = [fault for fault in all_faults() if fault.kind in kinds]
    if arguments.seed is not None:
        faults = shuffled(faults, arguments.seed)
    chosen = sample(faults, arguments.share)
    if arguments.minutes is not None:
        chosen = interleaved(chosen)
    if arguments.anew:
        arguments.out.unlink(missing_ok=True)
    minutes = float("inf") if arguments.minutes is None else arguments.minutes
    arguments.work.mkdir(parents=True, exist_ok=True)
    lines = carry_out(chosen, arguments.out, arguments.work, minutes, all_faults())
    table = as_markdown(lines)
    for line in table.splitlines():
        say(line)
    if arguments.out == FINDINGS and len(lines) == len(all_faults()):
        write_into(PAGE, table)
    bad = [line for line in lines if line.outcome.is_bad]
    for line in bad:
        complain(f"{line.outcome.value}: {line.kind}, {line.name}: {line.line}")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.faults", description=(__doc__ or "").splitlines()[0]
    )
    names = [kind.name for kind in KINDS]
    parser.add_argument("--kind", action="append", choices=names, help="only faults of this kind")
    parser.add_argument("--share", type=float, default=1.0, help="share of the faults of each kind")
    parser.add_argument("--seed", type=int, help="which faults are among the first, or the share")
    parser.add_argument("--minutes", type=float, help="stop after so long, all kinds evenly")
    parser.add_argument("--out", type=Path, default=FINDINGS, help="the file of findings")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "faults", help="a folder")
    parser.add_argument("--anew", action="store_true", help="forget earlier findings")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
