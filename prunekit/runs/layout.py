"""All stages, and all files that they leave in their directories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """A stage as the command line and run directories know it, without what it does.

    `title` is what `prunekit --help` says of it, `files` are its own. A stage that `looks` leaves
    no model: later ones start from what was there before.
    """

    name: str
    title: str
    files: tuple[str, ...] = ()
    looks: bool = False


PIPELINE = (
    Entry("pretrain", "train the dense network, or load weights into it"),
    Entry("sparsify", "train it under a sparsity penalty", ("scores.pt",)),
    Entry(
        "sensitivity",
        "accuracy and cost while one group of channels at a time is narrowed",
        ("sensitivity.csv", "sensitivity.png"),
        looks=True,
    ),
    Entry("prune", "remove the channels that score lowest", ("plan.json",)),
    Entry(
        "features",
        "draw test images as the network sees them: t-SNE, before fine-tuning",
        ("features.csv", "features.png"),
        looks=True,
    ),
    Entry("finetune", "train the narrow network"),
    Entry(
        "export",
        "write ONNX and torch.export files of a model, checked; int8 too",
        ("model.onnx", "model.onnx.data", "model.int8.onnx", "model.pt2"),
        looks=True,
    ),
    Entry(
        "measure",
        "accuracy, parameters, MACs, latency, memory: dense beside narrow",
        ("comparison.csv", "layers.csv", "correct.pt"),
        looks=True,
    ),
)
STAGES = tuple(entry.name for entry in PIPELINE)
LOOKING = frozenset(entry.name for entry in PIPELINE if entry.looks)
RESULTS = (  # what a finished stage leaves
    *("settings.json", "report.json", "metrics.csv", "model.pt"),
    *(file for entry in PIPELINE for file in entry.files),
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
