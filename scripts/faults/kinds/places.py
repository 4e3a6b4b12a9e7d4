"""Places that are full, read-only or gone."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.small import SMALL, TRAINED, WHOLE
from scripts.faults.trial import Finding, Outcome, Trial

_LINE = (*TRAINED, "name=trained")
_OPEN = 0o777


def faults() -> list[Fault]:
    """Return disks that fail at a file, small quotas, folders without rights, and removed ones."""
    failing = [
        Fault("places", f"{code} at file {count}", partial(_failing, f"{code}_before_name", count))
        for code in ("ENOSPC", "EROFS", "EDQUOT", "EIO", "EACCES")
        for count in (1, 6, 15)
    ]
    quotas = [
        Fault("places", f"no file above {size} bytes", partial(_quota, size))
        for size in (2000, 6000, 20_000)
    ]
    removed = [
        Fault("places", f"outputs removed before file {count}", partial(_removed, count))
        for count in (2, 7, 16)
    ]
    rights = {
        "outputs read-only": _read_only_outputs,
        "a finished run read-only, repeated": partial(_read_only_run, "run"),
        "a finished run read-only, reported": partial(_read_only_run, "report"),
        "a model that may not be read": _unreadable_model,
    }
    others = {
        "outputs is a file": _outputs_is_a_file,
        "outputs links to nowhere": _outputs_links_to_nowhere,
        "report to a full device": partial(_full_device, "--out", "table.csv"),
        "page to a full device": partial(_full_device, "--html", "page.html"),
    }
    return [
        *(*failing, *quotas, *removed),
        *(Fault("places", name, partial(_with_rights, act)) for name, act in rights.items()),
        *(Fault("places", name, act) for name, act in others.items()),
    ]


def _failing(trouble: str, count: int, trial: Trial) -> Finding:
    """It is refused, and where there is space again the same command goes on."""
    ended = trial.run(*_LINE, **{trouble: count})
    if ended.code == 0:
        return trial.judge(ended, same=lambda: trial.equals("trained"))
    finding = trial.judge(ended, ["outputs/trained"])
    return _and_again(trial, finding)


def _quota(size: int, trial: Trial) -> Finding:
    ended = trial.run(*_LINE, file_size=size)
    return _and_again(trial, trial.judge(ended, ["outputs/trained"]))


def _removed(count: int, trial: Trial) -> Finding:
    ended = trial.run(*_LINE, vanish_before_name=count)
    return _and_again(trial, trial.judge(ended, ["outputs/trained"]))


def _and_again(trial: Trial, finding: Finding) -> Finding:
    """Repeat the command without the trouble: it has to end with the right numbers."""
    if finding.outcome.is_bad:
        return finding
    trial.protect()
    again = trial.run(*_LINE)
    repeated = trial.judge(again, same=lambda: trial.equals("trained"), refusal=False)
    return repeated if repeated.outcome.is_bad else finding


def _with_rights(act: partial[Finding], trial: Trial) -> Finding:
    """Act where this machine can take rights from a process."""
    if os.geteuid() != 0:
        return Finding(Outcome.SKIPPED, "needs root, to give up the rights of root")
    python = Path(os.__file__).resolve()  # modules may be imported after the rights are given up
    for folder in (trial.place, *trial.place.parents, *python.parents):
        if not folder.stat().st_mode & 0o001:
            return Finding(Outcome.SKIPPED, "others may not enter the folders of Python")
    return act(trial)


def _read_only_outputs(trial: Trial) -> Finding:
    (trial.place / "outputs").mkdir(mode=0o755)
    return trial.judge(trial.run(*_LINE, nobody=True), ["outputs"])


def _read_only_run(command: str, trial: Trial) -> Finding:
    """What is finished needs no rights to be shown; or it is said which are missing."""
    trial.copy("whole")
    trial.protect()
    line = WHOLE if command == "run" else ("report",)
    ended = trial.run(*line, nobody=True)
    return trial.judge(ended, ["outputs"], lambda: trial.equals("whole"))


def _unreadable_model(trial: Trial) -> Finding:
    trial.copy("whole")
    (trial.place / "outputs/whole/sparsify/model.pt").chmod(0o600)
    trial.protect()
    trial.place.chmod(_OPEN)
    line = ("prune", *SMALL, "source=outputs/whole/sparsify", "root=other", "name=b")
    return trial.judge(trial.run(*line, nobody=True), ["model.pt"])


def _outputs_is_a_file(trial: Trial) -> Finding:
    (trial.place / "outputs").write_text("mine")
    return trial.judge(trial.run(*_LINE), ["outputs"])


def _outputs_links_to_nowhere(trial: Trial) -> Finding:
    (trial.place / "outputs").symlink_to("/nowhere/at/all")
    return trial.judge(trial.run(*_LINE), ["outputs"])


def _full_device(option: str, name: str, trial: Trial) -> Finding:
    """A file is written beside its place and renamed, so a link to a device is replaced."""
    trial.copy("whole")
    (trial.place / name).symlink_to("/dev/full")
    trial.protect()
    line = ("report", "--no-html") if option == "--out" else ("report",)
    return trial.judge(trial.run(*line, option, name), [name])
