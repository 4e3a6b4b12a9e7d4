"""Faults one after the other; what stands in the file of findings is not done again."""

from __future__ import annotations

import csv
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.console import track
from prunekit.runs.files import write_csv
from prunekit.text import unguarded
from scripts.faults.children import Children
from scripts.faults.small import SmallRuns
from scripts.faults.trial import Finding, Outcome, Trial

Act = Callable[[Trial], Finding]
COLUMNS = ("kind", "name", "outcome", "line")


@dataclass(frozen=True)
class Fault:
    """A fault of a kind: `act` does it to small runs in a folder of its own, and judges."""

    kind: str
    name: str
    act: Act

    @property
    def key(self) -> tuple[str, str]:
        """The kind and the name, which no other fault has."""
        return self.kind, self.name


@dataclass(frozen=True)
class Line:
    """A line of the file of findings."""

    kind: str
    name: str
    outcome: Outcome
    line: str

    def to_dict(self) -> dict[str, str]:
        """Return the columns of the file."""
        values = (self.kind, self.name, self.outcome.value, self.line)
        return dict(zip(COLUMNS, values, strict=True))


def read(path: Path) -> list[Line]:
    """Return the lines of a file of findings, none if there is no file."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as lines:
        return [
            Line(
                row["kind"], unguarded(row["name"]), Outcome(row["outcome"]), unguarded(row["line"])
            )
            for row in csv.DictReader(lines)
        ]


def shuffled(faults: Sequence[Fault], seed: int) -> list[Fault]:
    """Return the faults in another order within each kind."""
    kinds = dict.fromkeys(fault.kind for fault in faults)
    own = [[fault for fault in faults if fault.kind == kind] for kind in kinds]
    draw = random.Random(seed)
    return [fault for group in own for fault in draw.sample(group, len(group))]


def sample(faults: Sequence[Fault], share: float) -> list[Fault]:
    """Return that share of the faults of every kind, at least one, evenly spread over it."""
    chosen = []
    for kind in dict.fromkeys(fault.kind for fault in faults):
        own = [fault for fault in faults if fault.kind == kind]
        count = max(1, round(share * len(own)))
        chosen += [own[index * len(own) // count] for index in range(count)]
    return chosen


def interleaved(faults: Sequence[Fault]) -> list[Fault]:
    """Return the faults in an order in which all kinds come to an end at the same time."""
    totals = Counter(fault.kind for fault in faults)
    seen: Counter[str] = Counter()
    places = []
    for fault in faults:
        seen[fault.kind] += 1
        places.append(seen[fault.kind] / totals[fault.kind])
    order = sorted(range(len(faults)), key=lambda index: (places[index], index))
    return [faults[index] for index in order]


def carry_out(
    faults: Sequence[Fault],
    out: Path,
    work: Path,
    minutes: float = float("inf"),
    known: Sequence[Fault] = (),
) -> list[Line]:
    """Do the faults that the file `out` lacks, until the minutes are over; return their lines.

    Those that ended badly are done again. The file is written after every fault. It keeps the lines
    of all `known` faults, in their order.
    """
    done = {(line.kind, line.name): line for line in read(out)}
    missing = [f for f in faults if f.key not in done or done[f.key].outcome.is_bad]
    deadline = time.monotonic() + 60 * minutes
    with Children() as children:
        small = SmallRuns(work / "small")
        small.make(children)
        for fault in track(missing, "faults", len(missing)):
            if time.monotonic() > deadline:
                break
            finding = _do(fault, work / "place", children, small)
            done[fault.key] = Line(*fault.key, finding.outcome, finding.line[:300])
            write_csv(out, [line.to_dict() for line in _in_order(done, known or faults)])
    return _in_order(done, faults)


def _do(fault: Fault, place: Path, children: Children, small: SmallRuns) -> Finding:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        return fault.act(Trial(place, children, small))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _in_order(done: dict[tuple[str, str], Line], faults: Iterable[Fault]) -> list[Line]:
    return [done[fault.key] for fault in faults if fault.key in done]
