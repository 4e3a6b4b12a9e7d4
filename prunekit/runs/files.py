"""Json and csv files, written whole or not at all, and digests that show later changes."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError, DamageError
from prunekit.runs.report import Report
from prunekit.text import guard_formula

_CHUNK = 1 << 20  # bytes
_DEEPEST = 50  # levels of lists and dicts in a json file
_TEXT = (".csv", ".json")
_VIEW_ONLY = (".png", "metrics.csv")  # prunekit never reads these back: a person looks at them


def write_text(path: Path, write: Callable[[IO[str]], object]) -> None:
    """Let `write` fill a text file; the old content stays until the new content is complete."""
    with replacing(path) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        write(file)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented json with the keys in their given order."""
    text = json.dumps(values, indent=2, default=str) + "\n"
    write_text(path, lambda file: file.write(text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a json object; raises ArtifactError if the file is missing or damaged.

    Values that are nested deeper than `_DEEPEST` count as damage: none of prunekit are.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run again") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} is not a json object; delete it and run again")
    if _is_deeper(values, _DEEPEST):
        raise ArtifactError(
            f"{path} is damaged (nested deeper than {_DEEPEST}); delete it and run again"
        )
    return values


def _is_deeper(node: dict[str, Any] | list[Any], depth: int) -> bool:
    """Return whether lists and dicts are nested deeper than `depth`."""
    level = [node]
    for _ in range(depth):
        inner = (n.values() if isinstance(n, dict) else n for n in level)
        level = [child for nodes in inner for child in nodes if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def write_csv(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as csv; the columns are all keys, in order of first appearance.

    Text that begins like a formula is guarded against spreadsheets (`prunekit.text`).
    """
    columns = list(dict.fromkeys(key for record in records for key in record))

    def write(file: IO[str]) -> None:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in r.items()} for r in records)

    write_text(path, write)


def _cell(value: Any) -> Any:
    return guard_formula(value) if isinstance(value, str) else value


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal; raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(file: Path) -> str:
    """Return the first 16 characters of a file's SHA-256; raises OSError."""
    return sha256_of(file)[:16]


@dataclass(frozen=True)
class FileChanges:
    """Names of files that differ from what a stage wrote.

    `damaged` files cannot be used. `edited` ones can: they are text that still parses, or files
    that only a person looks at. `missing` ones do not exist any more.
    """

    damaged: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def unusable(self) -> tuple[str, ...]:
        """Files without which the stage has to be computed again."""
        return (*self.damaged, *(name for name in self.missing if not name.endswith(_VIEW_ONLY)))

    @property
    def all(self) -> tuple[str, ...]:
        """All names."""
        return (*self.damaged, *self.edited, *self.missing)


def compare_digests(folder: Path, digests: Mapping[str, str]) -> FileChanges:
    """Compare the files in a folder with their recorded digests, which are given by name."""
    damaged: list[str] = []
    edited: list[str] = []
    missing: list[str] = []
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            missing.append(name)
        elif _readable_digest(file) != digest:
            (edited if _is_usable(file) else damaged).append(name)
    return FileChanges(tuple(damaged), tuple(edited), tuple(missing))


def verify(file: Path) -> tuple[str, ...]:
    """Check a file against the report beside it; returns warnings for the user.

    Raises DamageError if the file cannot be used. A file that no report mentions passes.
    """
    report_file = file.parent / "report.json"
    if not report_file.is_file():
        return ()
    try:
        report = Report.from_dict(read_json(report_file))
    except (ArtifactError, TypeError, ValueError):
        return (f"{report_file} is damaged, so {file.name} beside it cannot be checked",)
    if not report.files:
        return (
            f"{file} was made by an earlier version of prunekit and carries no digest, so it "
            "cannot be checked",
        )
    if file.name not in report.files:
        return ()
    changes = compare_digests(file.parent, {file.name: report.files[file.name]})
    if changes.damaged:
        raise DamageError(
            f"{file} is damaged: its bytes are not those that {report.stage} wrote; run that stage "
            "again, which sets it aside and computes it anew"
        )
    if changes.missing:
        raise DamageError(f"{file} is gone; run the stage that makes it again: {report.stage}")
    return tuple(
        f"{file.parent / name} was changed since it was written" for name in changes.edited
    )


def _readable_digest(file: Path) -> str:
    try:
        return digest_of(file)
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read: {error.strerror or error}; check its permissions and the disk"
        ) from error


def _is_usable(file: Path) -> bool:
    """Return whether a changed file can still be used."""
    return file.name.endswith(_VIEW_ONLY) or (file.suffix in _TEXT and _parses(file))


def _parses(file: Path) -> bool:
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            if file.suffix == ".json":
                return isinstance(json.load(lines), dict)
            return len({len(cells) for cells in csv.reader(lines, strict=True)}) == 1
    except (OSError, ValueError, RecursionError, csv.Error):
        return False
