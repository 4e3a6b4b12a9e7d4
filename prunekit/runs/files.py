"""Json and csv files, written whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError


def write_text(path: Path, write: Callable[[IO[str]], object]) -> None:
    """Let `write` fill a text file; the old content stays until the new one is whole."""
    with replacing(path) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        write(file)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write indented json, keys in the order given."""
    text = json.dumps(values, indent=2, default=str) + "\n"
    write_text(path, lambda file: file.write(text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a json object; ArtifactError names the file when it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); delete it and run again") from error
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} is not a json object; delete it and run again")
    return values


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as csv; columns are the union of all keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def write(file: IO[str]) -> None:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

    write_text(path, write)
