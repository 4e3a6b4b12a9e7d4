"""One fault: the folder it happens in, what must not be lost there, and the verdict."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from scripts.faults.children import Children, Command, Ended
from scripts.faults.messages import find_fault
from scripts.faults.results import numbers, runs_with_seed
from scripts.faults.small import SmallRuns

CANARY = "code-was-run"  # what payloads of hostile files create in the folder of the command
OUTSIDE = "outside"  # a folder of the user's beside the runs: no command may change it
_RESULTS = ("model.pt", "scores.pt", "plan.json")


class Outcome(Enum):
    """What became of a run to which something happened."""

    EXACT = "exact"  # finished, and equal to an undisturbed run to the last bit
    TOLD = "told"  # finished with another result, and a line names the reason
    REFUSED = "refused"  # ended with one readable line, and nothing was changed
    BAD_MESSAGE = "bad message"
    SILENTLY_WRONG = "silently wrong"  # finished with another result, and nothing tells so
    LOST = "lost"  # a finished result, a checkpoint or a file of the user's is gone
    CODE_RUN = "code run"  # a file made the command run code
    SKIPPED = "skipped"  # this machine cannot bring the fault about

    @property
    def is_bad(self) -> bool:
        """Return whether this must not happen."""
        return self in (
            Outcome.BAD_MESSAGE,
            Outcome.SILENTLY_WRONG,
            Outcome.LOST,
            Outcome.CODE_RUN,
        )


@dataclass(frozen=True)
class Finding:
    """The outcome of a fault, and the line that explains it."""

    outcome: Outcome
    line: str = ""


@dataclass
class Trial:
    """The folder `place` of one fault, and the commands that are run in it."""

    place: Path
    children: Children
    small: SmallRuns
    _kept: dict[str, str] = field(default_factory=dict)

    def copy(self, *names: str) -> None:
        """Copy prepared folders into the place: their content, not the folders themselves."""
        for name in names:
            shutil.copytree(self.small.path / name, self.place, dirs_exist_ok=True, symlinks=True)

    def protect(self) -> None:
        """Remember finished results, checkpoints and files of the user's: they must not go."""
        self._kept = {
            str(file.relative_to(self.place)): _digest(file)
            for file in self._files()
            if file.name in _RESULTS
            or file.match("last*.pt")
            or file.parts[len(self.place.parts)] == OUTSIDE
        }

    def lost(self, finished: bool) -> list[str]:
        """Return the names of what is gone; finished runs and stages need no checkpoints."""
        files = {str(file.relative_to(self.place)): _digest(file) for file in self._files()}
        contents = {*files.values()}
        gone = []
        for name, digest in self._kept.items():
            outside = name.startswith(OUTSIDE)
            checkpoint = not outside and Path(name).match("last*.pt")
            if checkpoint and (finished or (self.place / name).with_name("report.json").exists()):
                continue
            if (outside and files.get(name) != digest) or digest not in contents:
                gone.append(name)
        return gone

    def run(self, *argv: str, **trouble: object) -> Ended:
        """Run one command here."""
        return self.children.run(self.place, *argv, **trouble)

    def run_all(self, commands: Sequence[Command]) -> list[Ended]:
        """Run commands here at the same time."""
        return self.children.run_all(self.place, commands)

    def equals(self, name: str, run: str | None = None) -> bool:
        """Return whether a run has the numbers of the prepared run `name`."""
        return numbers(self.place / "outputs" / (run or name)) == self.small.numbers(name)

    def equals_sweep(self, name: str) -> bool:
        """Return whether the sweep has two jobs, the one with seed 0 equal to a prepared run."""
        first, second = (runs_with_seed(self.place / "outputs/swept", seed) for seed in (0, 1))
        return (
            (len(first), len(second)) == (1, 1)
            and numbers(first[0]) == self.small.numbers(name)
            and numbers(second[0]) != self.small.numbers(name)
        )

    def judge(
        self,
        ended: Ended,
        mentions: Sequence[str] = (),
        same: Callable[[], bool] | None = None,
        refusal: bool = True,
    ) -> Finding:
        """Return the verdict on a command; its message must contain one of `mentions`.

        `same` says whether a finished command has the right result. Without `refusal` it has to
        finish.
        """
        home = os.environ.get("HOME") or "/"  # findings are the same for everybody
        line = ended.last_line.replace(str(self.place), ".")
        line = line if home == "/" else line.replace(f"'{home}", "'~")
        if (self.place / CANARY).exists():
            return Finding(Outcome.CODE_RUN, line)
        if gone := self.lost(finished=ended.code == 0):
            return Finding(Outcome.LOST, f"{', '.join(gone)}: {line}")
        if fault := find_fault(ended, mentions):
            return Finding(Outcome.BAD_MESSAGE, f"{fault}: {line}")
        if ended.code != 0:
            return Finding(Outcome.REFUSED if refusal else Outcome.BAD_MESSAGE, line)
        if same is None or same():
            return Finding(Outcome.EXACT, line)
        told = [text for text in ended.lines if any(word in text for word in mentions)]
        if told:
            return Finding(Outcome.TOLD, told[0].strip())
        return Finding(Outcome.SILENTLY_WRONG, line)

    def _files(self) -> list[Path]:
        found = (path for path in self.place.rglob("*") if path.is_file())
        return sorted(path for path in found if not path.is_symlink())


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
