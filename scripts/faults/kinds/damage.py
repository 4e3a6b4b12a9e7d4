"""Files of runs that are cut off, or in which bits change."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.damage import flip, flip_digit, flip_letter, flip_weights, truncate
from scripts.faults.small import BEGUN, SMALL, WHOLE
from scripts.faults.trial import Finding, Trial

Harm = Callable[[Path], None]
_ANY: dict[str, Harm] = {
    "cut in half": partial(truncate, share=0.5),
    "without its last byte": partial(truncate, share=1.0),
    "a bit anywhere": flip,
}
_TEXT: dict[str, Harm] = {"another digit": flip_digit, "no text": flip_letter}
_FINISHED = (
    *("pretrain/settings.json", "pretrain/report.json", "pretrain/metrics.csv"),
    *("pretrain/model.pt", "sparsify/scores.pt", "sensitivity/sensitivity.csv"),
    *("prune/plan.json", "finetune/model.pt", "measure/comparison.csv", "measure/layers.csv"),
    "measure/correct.pt",
)
_UNFINISHED = ("last.pt", "seconds", "settings.json", "metrics.csv")
_SOURCES = ("sparsify/model.pt", "sparsify/scores.pt", "sparsify/report.json")


def faults() -> list[Fault]:
    """Return harms to every kind of file: of finished stages, unfinished ones, sources, reports."""
    return [
        *(
            Fault("damage", f"{name} {harm}, run again", partial(_finished, name, act))
            for name in _FINISHED
            for harm, act in _harms(name).items()
        ),
        *(
            Fault("damage", f"{name} {harm}, resumed", partial(_resumed, name, act))
            for name in _UNFINISHED
            for harm, act in _harms(name).items()
        ),
        *(
            Fault("damage", f"{name} {harm}, pruned from it", partial(_source, name, act))
            for name in _SOURCES
            for harm, act in _harms(name).items()
        ),
        *(
            Fault("damage", f"{name} {harm}, reported", partial(_reported, name, act))
            for name in ("finetune/report.json", "finetune/model.pt", "finetune/metrics.csv")
            for harm, act in _harms(name).items()
        ),
    ]


def _harms(name: str) -> dict[str, Harm]:
    if name.endswith(".pt"):
        return {**_ANY, "a bit of a number": flip_weights}
    return {**_ANY, **_TEXT}


def _finished(name: str, harm: Harm, trial: Trial) -> Finding:
    """The stage is computed again, or the change is told."""
    trial.copy("whole")
    harm(trial.place / "outputs/whole" / name)
    trial.protect()
    ended = trial.run(*WHOLE)
    return trial.judge(ended, [name], lambda: trial.equals("whole"))


def _resumed(name: str, harm: Harm, trial: Trial) -> Finding:
    """The stage goes on, or starts anew."""
    trial.copy("begun")
    harm(trial.place / "outputs/begun/sparsify" / name)
    trial.protect()
    ended = trial.run(*BEGUN)
    return trial.judge(ended, [name], lambda: trial.equals("trained", "begun"))


def _source(name: str, harm: Harm, trial: Trial) -> Finding:
    """Another run starts from it, and gives the same network, or is refused."""
    trial.copy("whole")
    harm(trial.place / "outputs/whole" / name)
    trial.protect()
    # in the whole run fine-tuning follows, so that layers are not refitted by default
    line = ("prune", *SMALL, "source=outputs/whole/sparsify", "reconstruct=none", "name=other")
    ended = trial.run(*line)
    made = trial.place / "outputs/other/prune/model.pt"
    whole = trial.place / "outputs/whole/prune/model.pt"
    return trial.judge(ended, [name.split("/")[1], "sparsify"], lambda: _same(made, whole))


def _reported(name: str, harm: Harm, trial: Trial) -> Finding:
    """The table is the same, or a line names the file."""
    trial.copy("whole")
    line = ("report", "--html", "page.html", "--out", "table.csv")
    table = trial.place / "table.csv"
    trial.run(*line)
    before = table.read_bytes()
    harm(trial.place / "outputs/whole" / name)
    trial.protect()
    ended = trial.run(*line)
    return trial.judge(ended, [name, name.split("/")[0]], lambda: table.read_bytes() == before)


def _same(one: Path, other: Path) -> bool:
    """Return whether two files of torch have the same entries; their names are not compared."""
    contents = []
    for file in (one, other):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            contents.append([entry.CRC for entry in entries if "/data" in entry.filename])
    return contents[0] == contents[1]
