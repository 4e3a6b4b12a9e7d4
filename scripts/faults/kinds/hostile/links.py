"""Links in run directories that lead out of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.small import BEGUN, WHOLE
from scripts.faults.trial import OUTSIDE, Finding, Trial

_FILES = ("model.pt", "report.json", "settings.json", "metrics.csv", "last.pt", "seconds")


def faults() -> list[Fault]:
    """Return links in place of files and folders, for commands that write or delete there."""
    return [
        *(
            Fault("hostile", f"{name} is a link to a file outside", partial(_file, name))
            for name in _FILES
        ),
        Fault("hostile", "a stage is a link to a folder outside", partial(_folder, "prune")),
        Fault(
            "hostile", ".former is a link to a folder outside", partial(_folder, "sparsify/.former")
        ),
        Fault("hostile", "a run is a link to a folder outside, cleaned", _cleaned),
        Fault("hostile", "the lock is a link to a file outside", _lock),
        Fault("hostile", "the page is a link to a file outside", _page),
        Fault("hostile", "a run links to itself", _circle),
    ]


def _outside(trial: Trial) -> Path:
    folder = trial.place / OUTSIDE
    folder.mkdir()
    for name in (*_FILES, "mine.txt", ".model.pt.part7", "model.pt.damaged"):
        (folder / name).write_text("mine")
    return folder


def _file(name: str, trial: Trial) -> Finding:
    """A file is replaced, never written through; the link goes, what it leads to stays."""
    trial.copy("begun")
    file = trial.place / "outputs/begun/sparsify" / name
    file.unlink(missing_ok=True)
    file.symlink_to(_outside(trial) / name)
    trial.protect()
    ended = trial.run(*BEGUN)
    return trial.judge(ended, [name, "sparsify"], lambda: trial.equals("trained", "begun"))


def _folder(name: str, trial: Trial) -> Finding:
    """A folder of a run that leads out of it is not written into."""
    trial.copy("begun")
    link = trial.place / "outputs/begun" / name
    link.symlink_to(_outside(trial))
    trial.protect()
    ended = trial.run(*BEGUN)
    return trial.judge(ended, [link.name], lambda: trial.equals("trained", "begun"))


def _cleaned(trial: Trial) -> Finding:
    trial.copy("whole")
    outside = _outside(trial)
    run = trial.place / "outputs/linked"
    run.mkdir()
    (run / "prune").symlink_to(outside)
    trial.protect()
    return trial.judge(trial.run("clean"))


def _lock(trial: Trial) -> Finding:
    trial.copy("whole")
    lock = trial.place / "outputs/whole/.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(_outside(trial) / "mine.txt")
    trial.protect()
    return trial.judge(trial.run(*WHOLE), [".lock", "whole"], lambda: trial.equals("whole"))


def _page(trial: Trial) -> Finding:
    trial.copy("whole")
    (trial.place / "outputs/report.html").symlink_to(_outside(trial) / "mine.txt")
    trial.protect()
    return trial.judge(trial.run("report"), ["report.html"])


def _circle(trial: Trial) -> Finding:
    trial.copy("whole")
    (trial.place / "outputs/whole/again").symlink_to(trial.place / "outputs")
    trial.protect()
    return trial.judge(trial.run("report"), ["whole"])
