"""Names of all stages and of the files that they write, and the backup of a finished result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from prunekit.atomic_write import assure
from prunekit.errors import ArtifactError


@dataclass(frozen=True)
class StageEntry:
    """Describe a stage to the command line and to run directories, without importing its code.

    `title` is its line in `prunekit --help`; `files` are those that only this stage writes. A
    `read_only` stage leaves no model, so that later stages start from the model before it.
    """

    name: str
    title: str
    files: tuple[str, ...] = ()
    read_only: bool = False


_PRUNE_FILES = ("plan.json", "refit.csv", "refit.png")
PIPELINE = (
    StageEntry("pretrain", "train the dense network, or load weights into it"),
    StageEntry("sparsify", "train it under a sparsity penalty", ("scores.pt",)),
    StageEntry(
        "sensitivity",
        "accuracy and cost while one group of channels at a time is narrowed",
        ("sensitivity.csv", "sensitivity.png"),
        read_only=True,
    ),
    StageEntry("prune", "remove the channels that score lowest", _PRUNE_FILES),
    StageEntry(
        "features",
        "draw test images as the network sees them: t-SNE, before fine-tuning",
        ("features.csv", "features.png"),
        read_only=True,
    ),
    StageEntry("finetune", "train the narrow network"),
    StageEntry(
        "export",
        "write ONNX and torch.export files of a model, checked; int8 too",
        ("model.onnx", "model.onnx.data", "model.int8.onnx", "model.pt2"),
        read_only=True,
    ),
    StageEntry(
        "measure",
        "accuracy, parameters, MACs, latency, memory: dense beside narrow",
        ("comparison.csv", "layers.csv", "correct.pt"),
        read_only=True,
    ),
)
STAGES = tuple(entry.name for entry in PIPELINE)
READ_ONLY_STAGES = frozenset(entry.name for entry in PIPELINE if entry.read_only)
REPORT = "report.json"
RESULTS = (  # files of a finished stage
    *("settings.json", REPORT, "metrics.csv", "model.pt"),
    *(file for entry in PIPELINE for file in entry.files),
)
PROGRESS = ("last*.pt", "seconds", ".warnings")  # files that only an unfinished stage needs
CONTINUED = ("sensitivity.csv",)  # tables to which a resumed stage adds
BACKUP = ".former"  # folder of the last finished result while the stage is computed anew
TRACKER_FILES = (".mlflow", "events.out.tfevents.*")
DRAFTS = tuple(f".{name}.part*" for name in (*RESULTS, *PROGRESS))  # left by killed processes
SET_ASIDE = tuple(
    f"{name}.{reason}{number}"
    for name in (*RESULTS, *PROGRESS)
    for reason in ("damaged", "foreign")
    for number in ("", "-*")
)


def matching_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files in a folder whose names match a pattern, sorted by name."""
    return [file for file in _files(folder) if any(fnmatchcase(file.name, p) for p in patterns)]


def own_files(folder: Path) -> tuple[Path, ...]:
    """Return the files in a stage directory that prunekit wrote."""
    patterns = (*RESULTS, *PROGRESS, *TRACKER_FILES, *DRAFTS, *SET_ASIDE)
    return tuple(matching_files(folder, patterns))


def foreign_paths(folder: Path) -> list[Path]:
    """Return files and folders in a stage directory that prunekit did not write."""
    own = {*own_files(folder), folder / BACKUP}
    return sorted(path for path in folder.iterdir() if path not in own)


def back_up(stage: Path) -> None:
    """Move everything that prunekit wrote in a stage directory to its backup folder.

    If the backup holds a finished result already, the newer, unfinished files are deleted instead.
    """
    backup = stage / BACKUP
    assure(stage / REPORT)
    if backup.is_symlink():
        raise ArtifactError(
            f"{backup} is a link, and results are only moved within a run; delete it"
        )
    has_result = (backup / REPORT).is_file()
    backup.mkdir(exist_ok=True)
    for file in _report_last(stage):
        if has_result:
            file.unlink()
        else:
            file.rename(backup / file.name)


def restore_backup(stage: Path) -> None:
    """Undo `back_up` in a stage directory where no work was done since."""
    backup = stage / BACKUP
    for file in () if backup.is_symlink() else _report_last(backup):
        file.replace(stage / file.name)
    with contextlib.suppress(OSError):
        backup.rmdir()


def delete_backup(stage: Path) -> None:
    """Delete the backup of a stage whose new result is complete."""
    shutil.rmtree(stage / BACKUP, ignore_errors=True)


def _report_last(folder: Path) -> list[Path]:
    """Return the files to move, the report last: where a report is, all other files are."""
    files = matching_files(folder, (*RESULTS, *PROGRESS, *TRACKER_FILES))
    return sorted(files, key=lambda file: file.name == REPORT)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.iterdir() if path.is_file())
