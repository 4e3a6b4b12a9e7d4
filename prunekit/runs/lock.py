"""One process at a time works on a run, and knows when the directory is no longer the one it took.

A directory that is removed under a process, and made again by another one, is another directory:
the lock of the first is on a file that has no name any more.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.atomic_write import guarded
from prunekit.console import doing
from prunekit.errors import ArtifactError

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = ".lock"
_TRIES = 100
Stamp = tuple[int, int]  # device and inode: a file that is held open keeps both to itself


@contextmanager
def held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """KeepZeros a run's directory, which is made where there is none, for one process.

    The lock goes with the process, however it ends. ArtifactError where another process has it,
    unless it is to `wait` for that; and inside, before any file below takes its name, where the
    directory was removed or replaced. A directory in which nothing was done is removed again.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock, stamp = _acquired(folder, wait)
    try:
        with guarded(folder, partial(_check, folder, stamp)):
            yield
    finally:
        if _stamp(folder) == stamp:
            _leave_nothing(folder, made)
        lock.release()


@contextmanager
def free(folder: Path) -> Iterator[bool]:
    """Whether nobody works on a run that there is; inside, nobody begins to."""
    lock, alone = None, True
    if (folder / NAME).is_file():
        try:
            lock = _try(folder)
            alone = lock is not None
        except OSError:  # it cannot even be opened
            alone = False
    try:
        yield alone
    finally:
        if lock is not None:
            lock.release()


def _acquired(folder: Path, wait: bool) -> tuple[BaseFileLock, Stamp]:
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):  # who had it did nothing and removed it
            folder.mkdir(parents=True, exist_ok=True)
            lock = _try(folder) or _waited(folder, wait)
            if (stamp := _stamp(folder)) is not None:
                return lock, stamp
            lock.release()
    raise ArtifactError(f"{folder} is removed again and again; choose name=...")


def _try(folder: Path) -> BaseFileLock | None:
    """The lock, None where another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _waited(folder: Path, wait: bool) -> BaseFileLock:
    from filelock import FileLock

    if not wait:
        raise ArtifactError(
            f"another process is working on {folder}; wait for it, or choose name=..."
        )
    lock = FileLock(folder / NAME)
    doing("waits for another process")
    try:
        lock.acquire()
    finally:
        doing("")
    return lock


def _stamp(folder: Path) -> Stamp | None:
    try:
        found = os.stat(folder / NAME)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check(folder: Path, stamp: Stamp) -> None:
    if _stamp(folder) != stamp:
        raise ArtifactError(
            f"{folder} was removed or replaced while this process worked on it, which stops here "
            "and writes nothing more; the same command starts anew"
        )


def _leave_nothing(folder: Path, made: list[Path]) -> None:
    """Remove the lock where nothing was done, and folders that were made for it."""
    with contextlib.suppress(OSError):
        stages = [path for path in folder.iterdir() if path.is_dir()]
        if not any(any(stage.iterdir()) for stage in stages):
            (folder / NAME).unlink()
            for place in made:
                place.rmdir()
