"""Write files so that they are complete or absent, and only in folders this process still owns."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from prunekit.errors import ArtifactError

Check = Callable[[], None]
_ROOM = 1 << 20  # bytes; with less the disk counts as full
_guards: list[tuple[Path, Check]] = []  # absolute paths of the folders that this process owns


@contextlib.contextmanager
def guarded(folder: Path, check: Check) -> Iterator[None]:
    """Call `check`, which may raise, before any file below `folder` is renamed into place."""
    guard = _absolute(folder), check
    _guards.append(guard)
    try:
        yield
    finally:
        _guards.remove(guard)


def assure(path: Path) -> None:
    """Call the checks of all guarded folders above `path`; they raise if a folder was lost."""
    parents = _absolute(path).parents
    for folder, check in [*_guards]:
        if folder in parents:
            check()


def set_aside(path: Path, reason: str = "damaged") -> Path:
    """Rename a file to `<name>.<reason>`, with a number if that exists; return the new path."""
    assure(path)
    target, number = path.with_name(f"{path.name}.{reason}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{reason}-{number}")
    path.rename(target)
    return target


def _reason(error: Exception, folder: Path) -> str:
    """Return why torch could not write: it does not pass on that the disk is full."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < _ROOM:
            return "no space left on the device"
    reason = str(error).splitlines()[0]
    # of a full quota torch only says where its own code noticed
    return "the disk or a quota may be full" if "enforce fail" in reason else reason


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    Raises ArtifactError when the disk is full or read-only, and when this process no longer owns
    the folder. An existing file stays as it was.
    """
    assure(path)
    # torch writes the stem of the path into the file, so the process id goes into the suffix
    draft = path.with_name(f".{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        with open(draft, "rb") as file:
            os.fsync(file.fileno())
        assure(path)
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        assure(path)  # a folder that was lost meanwhile is the reason
        reason = getattr(error, "strerror", None) or _reason(error, path.parent)
        raise ArtifactError(
            f"{path} could not be written: {reason}; free space and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
