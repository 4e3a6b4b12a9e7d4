"""What a stage held before it is computed anew: kept until the new result is there."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from prunekit.atomic_write import assure
from prunekit.runs.layout import FORMER, PROGRESS, RESULTS, TRACKED, named

REPORT = "report.json"


def put_away(stage: Path) -> None:
    """Move what prunekit wrote out of the way; nothing else is touched.

    Where a finished result lies there already, what came after it goes.
    """
    place = stage / FORMER
    assure(stage / REPORT)
    kept = (place / REPORT).is_file()
    place.mkdir(exist_ok=True)
    for file in _in_order(stage):
        if kept:
            file.unlink()
        else:
            file.rename(place / file.name)


def put_back(stage: Path) -> None:
    """Undo it, in a stage in which nothing was done since."""
    place = stage / FORMER
    for file in _in_order(place):
        file.replace(stage / file.name)
    with contextlib.suppress(OSError):
        place.rmdir()


def forget(stage: Path) -> None:
    """Delete it, since the new result is there."""
    shutil.rmtree(stage / FORMER, ignore_errors=True)


def _in_order(folder: Path) -> list[Path]:
    """The report last: where it is, there is all."""
    files = named(folder, (*RESULTS, *PROGRESS, *TRACKED))
    return sorted(files, key=lambda file: file.name == REPORT)
