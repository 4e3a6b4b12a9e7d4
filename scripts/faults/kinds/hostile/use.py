"""Commands that read a file of a stranger, each with the place where it lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.faults.small import BEGUN, SMALL, WHOLE
from scripts.faults.trial import OUTSIDE, Finding, Trial

Make = Callable[[Path], object]  # writes the file at a path
MEMORY = 12 << 30  # bytes of address space; torch alone takes several of them


@dataclass(frozen=True)
class Use:
    """The folders that are copied, the place of the hostile file, and the command that reads it.

    `run` is the run that the command finishes, which then has the numbers of the small run `as_in`.
    A report shows what other files say, so it is right whatever the file holds.
    """

    copies: tuple[str, ...]
    file: str
    argv: tuple[str, ...]
    run: str = ""
    as_in: str = ""


_WHOLE = "outputs/whole"
USES: Mapping[str, Use] = {
    "weights": Use((), "evil.pt", ("pretrain", *SMALL, "weights=evil.pt", "name=a")),
    "source": Use(
        (), "evil.pt", ("prune", *SMALL, "source=evil.pt", "criterion=l1_norm", "name=a")
    ),
    "scores": Use(
        ("whole",),
        f"{_WHOLE}/sparsify/scores.pt",
        ("prune", *SMALL, f"source={_WHOLE}/sparsify", "name=a"),
    ),
    "teacher": Use(
        ("whole",),
        "evil.pt",
        (
            "finetune",
            *SMALL,
            f"source={_WHOLE}/prune",
            "distill=standard",
            "distill.teacher=evil.pt",
            "name=a",
        ),
    ),
    "checkpoint": Use(("begun",), "outputs/begun/sparsify/last.pt", BEGUN, "begun", "trained"),
    "finished model": Use(("whole",), f"{_WHOLE}/prune/model.pt", WHOLE, "whole", "whole"),
    "reported model": Use(("whole",), f"{_WHOLE}/prune/model.pt", ("report",)),
}


def use(name: str, make: Make, trial: Trial) -> Finding:
    """Put the file in its place and run the command; memory and time are limited."""
    used = USES[name]
    trial.copy(*used.copies)
    file = trial.place / used.file
    file.unlink(missing_ok=True)
    make(file)
    outside = trial.place / OUTSIDE
    outside.mkdir(exist_ok=True)
    (outside / "mine.txt").write_text("mine")
    trial.protect()
    ended = trial.run(*used.argv, memory=MEMORY)
    names = [file.name, used.file, "the loss is nan"]

    def same() -> bool:
        return used.argv[0] == "report" or (bool(used.run) and trial.equals(used.as_in, used.run))

    return trial.judge(ended, names, same)
