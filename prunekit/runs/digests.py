"""Digests of what a stage left, and what they say of the files when these are used."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import ArtifactError, DamageError
from prunekit.runs.files import read_json
from prunekit.runs.report import Report

_CHUNK = 1 << 20  # bytes
_TEXT = (".csv", ".json")
_SHOWN = (".png", "metrics.csv")  # nothing is made of these: a person looks at them


@dataclass(frozen=True)
class Findings:
    """Names of files that are not as they were written.

    `damaged` ones cannot be used; `edited` ones are text that still reads, and what is only looked
    at; `gone` ones are not there.
    """

    damaged: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()

    @property
    def useless(self) -> tuple[str, ...]:
        """Without these the stage has to be computed anew."""
        return (*self.damaged, *(name for name in self.gone if not name.endswith(_SHOWN)))

    @property
    def any(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.damaged, *self.edited, *self.gone)


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes in hexadecimal; OSError where it cannot be read."""
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def digest_of(file: Path) -> str:
    """Sixteen characters that say what a file holds; OSError where it cannot be read."""
    return sha256_of(file)[:16]


def compare(folder: Path, digests: Mapping[str, str]) -> Findings:
    """What has become of the files in a folder; the digests are by name."""
    damaged, edited, gone = [], [], []
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            gone.append(name)
        elif _digest(file) != digest:
            (edited if _harmless(file) else damaged).append(name)
    return Findings(tuple(damaged), tuple(edited), tuple(gone))


def verified(file: Path) -> tuple[str, ...]:
    """See that a file which a stage left is as it was written; returns what must be said of it.

    A file without a report beside it, and one that the report does not know, belongs to nobody and
    passes. DamageError names a file that cannot be used.
    """
    beside = file.parent / "report.json"
    if not beside.is_file():
        return ()
    try:
        report = Report.from_dict(read_json(beside))
    except (ArtifactError, TypeError, ValueError):
        return (f"{beside} is damaged, so {file.name} beside it cannot be checked",)
    if not report.files:
        return (
            f"{file} was made by an earlier version of prunekit and carries no digest, so it "
            "cannot be checked",
        )
    if file.name not in report.files:
        return ()
    found = compare(file.parent, {file.name: report.files[file.name]})
    if found.damaged:
        raise DamageError(
            f"{file} is damaged: its bytes are not those that {report.stage} wrote; run that stage "
            "again, which sets it aside and computes it anew"
        )
    if found.gone:
        raise DamageError(f"{file} is gone; run the stage that makes it again: {report.stage}")
    return tuple(f"{file.parent / name} was changed since it was written" for name in found.edited)


def _digest(file: Path) -> str:
    try:
        return digest_of(file)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read: {error.strerror or error}") from error


def _harmless(file: Path) -> bool:
    """Whether a file that was changed can be used all the same."""
    return file.name.endswith(_SHOWN) or (file.suffix in _TEXT and _reads(file))


def _reads(file: Path) -> bool:
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            if file.suffix == ".json":
                return isinstance(json.load(lines), dict)
            return len({len(row) for row in csv.reader(lines, strict=True)}) == 1
    except (OSError, ValueError, csv.Error):
        return False
