"""Files that are either whole or not there, in folders that are still those of this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from prunekit.errors import ArtifactError

Check = Callable[[], None]
_guards: list[tuple[Path, Check]] = []  # folders that this process holds, as absolute paths


@contextlib.contextmanager
def guarded(folder: Path, check: Check) -> Iterator[None]:
    """Inside it, `check` is asked before a file below `folder` takes its name; it may raise."""
    guard = _absolute(folder), check
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def assure(path: Path) -> None:
    """Ask those who guard a folder above `path` whether it is still the one they hold."""
    above = _absolute(path).parents
    for folder, check in [*_guards]:
        if folder in above:
            check()


def set_aside(path: Path, reason: str = "damaged") -> Path:
    """Rename a file to `<name>.<reason>`, numbered where that is taken; returns the new path."""
    assure(path)
    target, number = path.with_name(f"{path.name}.{reason}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{reason}-{number}")
    path.rename(target)
    return target


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the name only when the block succeeds.

    Raises ArtifactError when the disk refuses (full, read-only), and where the folder was taken
    from this process; what was there before stays.
    """
    assure(path)
    # torch writes the stem of a file into it: the process goes into the suffix, for equal bytes
    draft = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        assure(path)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ArtifactError(
            f"{path} could not be written: {reason}; free space and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
