"""Odd names of runs, folders and files."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.sets import mnist
from scripts.faults.small import MNIST, SMALL, TRAINED
from scripts.faults.trial import OUTSIDE, Finding, Outcome, Trial

_LONG = "long" * 80
_ODD = (
    *("two words", "[red]", "[/b]", "a[0]", "{a}", "(a)", "a,b", "a=b", "a%20b", "#1", "~tilde"),
    *(
        "-dash",
        "--dash",
        ".hidden",
        "..",
        ".",
        "a/b",
        "a//b",
        "a/../b",
        "../up",
        "$HOME",
        "${name}",
    ),
    *("${oc.env:HOME}", "$(id)", "a;b", "a|b", "a>b", "*", "?", "!", "'quoted'", '"quoted"'),
    *("back\\slash", "ümlaut", "日本", "🙂", "e\u0301", "\u202eright to left", "zero\u200bwidth"),
    *("tab\there", "new\nline", "bell\x07", "\x1b[31mred", "<script>alert(1)</script>", "&amp;"),
    *("=1+1", "null", "true", "1", "1e5", "[]", "{}", "report", "pretrain", "finetune/x"),
    *(".shared", "last.pt", "/dev/null", _LONG, "a" * 255, "x/" * 40 + "x"),
)
_FOLDERS = ("two words", "[red]", "a=b", "ümlaut", "a,b", "'q'", "$HOME")


def faults() -> list[Fault]:
    """Return names of runs, names of folders with images, sources and the work itself."""
    return [
        *(Fault("names", f"name={_shown(name)}", partial(_run, name)) for name in _ODD),
        *(Fault("names", f"images in {_shown(name)}", partial(_images, name)) for name in _FOLDERS),
        *(Fault("names", f"source in {_shown(name)}", partial(_source, name)) for name in _FOLDERS),
        *(Fault("names", f"root={_shown(name)}", partial(_root, name)) for name in _FOLDERS),
    ]


def _shown(name: str) -> str:
    text = ascii(name)[1:-1]
    return text if len(text) <= 40 else f"{text[:20]}... ({len(name)} characters)"


def _run(name: str, trial: Trial) -> Finding:
    """The run ends with the right numbers, or is refused; its report shows the name as it is."""
    outside = trial.place / OUTSIDE
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    trial.protect()
    inside = trial.place / "work"
    inside.mkdir()
    ended = trial.children.run(inside, *TRAINED, f"name={name}")
    found = [file.parent for file in inside.rglob("finetune") if file.is_dir()]
    finding = trial.judge(ended, _words(name), lambda: _has_numbers(trial, inside, found))
    strangers = [path.name for path in trial.place.iterdir() if path.name not in ("work", OUTSIDE)]
    if strangers:
        return Finding(Outcome.SILENTLY_WRONG, f"wrote outside of its root: {strangers[0]!r}")
    if finding.outcome.is_bad or ended.code != 0:
        return finding
    return _reported(name, trial, inside, finding)


def _words(name: str) -> list[str]:
    return ["name=", name, "outputs"]


def _has_numbers(trial: Trial, inside: Path, found: list[Path]) -> bool:
    from scripts.faults.results import numbers

    outputs = inside / "outputs"
    return (
        len(found) == 1
        and outputs in found[0].parents
        and numbers(found[0]) == trial.small.numbers("trained")
    )


def _reported(name: str, trial: Trial, inside: Path, finding: Finding) -> Finding:
    """The page holds no tag that the name brought in, and the table shows the run."""
    ended = trial.children.run(inside, "report")
    reported = trial.judge(ended, _words(name))
    if reported.outcome.is_bad:
        return reported
    page = (inside / "outputs/report.html").read_text() if ended.code == 0 else ""
    if name.startswith("<") and name in page:
        return Finding(Outcome.CODE_RUN, "the page holds the name as html")
    if not name.startswith(".") and name.isprintable() and ended.code == 0:
        shown = meant_name(name).strip("/").removeprefix("./")
        if shown not in ended.out and shown.split("/")[-1] not in ended.out:
            return Finding(Outcome.SILENTLY_WRONG, "the table does not show the name")
    return finding


def meant_name(name: str) -> str:
    """Return the name as the grammar of overrides has it: without quotes, with variables read."""
    quoted = len(name) > 1 and name[0] == name[-1] and name[0] in ("'", '"')
    return name[1:-1] if quoted else name.replace("${oc.env:HOME}", os.environ["HOME"])


def _images(name: str, trial: Trial) -> Finding:
    mnist(trial.place / name, 0)
    line = ("pretrain", *MNIST)
    ended = trial.run(*line, f"dataset.root={name}", "name=a")
    return trial.judge(ended, [name, "dataset.root"], refusal=_needs_quotes(name))


def _source(name: str, trial: Trial) -> Finding:
    shutil.copytree(trial.small.path / "whole/outputs/whole", trial.place / name)
    ended = trial.run("prune", *SMALL, f"source={name}/sparsify", "name=a")
    return trial.judge(ended, [name, "source"], refusal=_needs_quotes(name))


def _root(name: str, trial: Trial) -> Finding:
    ended = trial.run("pretrain", *SMALL, f"root={name}", "name=a")
    made = (trial.place / meant_name(name) / "a/pretrain/report.json").is_file
    return trial.judge(ended, [name, "root"], made, refusal=_needs_quotes(name))


def _needs_quotes(name: str) -> bool:
    """Return whether the grammar of overrides has a meaning for characters of the name."""
    return not name.replace(" ", "").isalnum()
