"""The names of all stages, and of all files that they leave in their directories."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

STAGES = (
    *("pretrain", "sparsify", "sensitivity", "prune", "features", "finetune", "export"),
    "measure",
)
LOOKING = frozenset({"sensitivity", "features", "export", "measure"})  # they leave no model
RESULTS = (  # what a finished stage leaves
    *("settings.json", "report.json", "metrics.csv", "model.pt", "scores.pt", "plan.json"),
    *("sensitivity.csv", "sensitivity.png", "features.csv", "features.png"),
    *("comparison.csv", "layers.csv", "correct.pt"),
    *("model.onnx", "model.onnx.data", "model.int8.onnx", "model.pt2"),
)
PROGRESS = ("last*.pt", "seconds", ".warnings")  # what only an unfinished one needs
CONTINUED = ("sensitivity.csv",)  # tables that an interrupted stage goes on with
FORMER = ".former"  # the folder of what a stage held before it is computed anew, until it is
TRACKED = (".mlflow", "events.out.tfevents.*")  # for other tools
DRAFTS = tuple(f".{name}.part*" for name in (*RESULTS, *PROGRESS))  # of killed writers
ASIDE = tuple(
    f"{name}.{reason}{number}"
    for name in (*RESULTS, *PROGRESS)
    for reason in ("damaged", "foreign")
    for number in ("", "-*")
)


def named(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files in a folder whose names follow a pattern, in order."""
    return [file for file in _files(folder) if any(fnmatchcase(file.name, p) for p in patterns)]


def ours(folder: Path) -> tuple[Path, ...]:
    """The files in the directory of a stage that prunekit wrote."""
    return (*named(folder, (*RESULTS, *PROGRESS, *TRACKED, *DRAFTS, *ASIDE)),)


def foreign(folder: Path) -> list[Path]:
    """What lies in the directory of a stage and was not written by prunekit, folders too."""
    known = {*ours(folder), folder / FORMER}
    return sorted(path for path in folder.iterdir() if path not in known)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file())
