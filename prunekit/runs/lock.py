"""A lock that lets one process at a time work on a run directory.

A directory that is removed under a process and made again by another is a different directory: the
first process's lock is on a file that has no name any more. The lock notices that.
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
from prunekit.console import set_status
from prunekit.errors import ArtifactError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_FILE = ".lock"
_ATTEMPTS = 100
FileId = tuple[int, int]  # device and inode: no other file has both while this one is open


@contextmanager
def hold(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a run directory, which is created if it does not exist.

    The lock is released when the process ends, however it ends. Raises ArtifactError if another
    process holds it, unless `wait` is set; and inside the block, before any file below the folder
    is replaced, if the directory was removed or replaced meanwhile. A directory in which nothing
    was done is removed again.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock, file_id = _acquire(folder, wait)
    try:
        with guarded(folder, partial(_check, folder, file_id)):
            yield
    finally:
        if _file_id(folder) == file_id:
            _remove_unused(folder, created)
        lock.release()


@contextmanager
def try_hold(folder: Path) -> Iterator[bool]:
    """Yield whether no other process works on an existing run; none can start inside the block."""
    lock, free = None, True
    if (folder / LOCK_FILE).is_file():
        try:
            lock = _try(folder)
            free = lock is not None
        except OSError:  # it cannot even be opened
            free = False
    try:
        yield free
    finally:
        if lock is not None:
            lock.release()


def _acquire(folder: Path, wait: bool) -> tuple[BaseFileLock, FileId]:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # the last holder did nothing and removed it
            folder.mkdir(parents=True, exist_ok=True)
            lock = _try(folder) or _wait_for(folder, wait)
            if (file_id := _file_id(folder)) is not None:
                return lock, file_id
            lock.release()
    raise ArtifactError(f"{folder} is removed again and again; choose name=...")


def _try(folder: Path) -> BaseFileLock | None:
    """Return the lock, or None if another process holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def _wait_for(folder: Path, wait: bool) -> BaseFileLock:
    from filelock import FileLock

    if not wait:
        raise ArtifactError(
            f"another process is working on {folder}; wait for it, or choose name=..."
        )
    lock = FileLock(folder / LOCK_FILE)
    set_status("waits for another process")
    try:
        lock.acquire()
    finally:
        set_status("")
    return lock


def _file_id(folder: Path) -> FileId | None:
    try:
        status = os.stat(folder / LOCK_FILE)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _check(folder: Path, file_id: FileId) -> None:
    if _file_id(folder) != file_id:
        raise ArtifactError(
            f"{folder} was removed or replaced while this process worked on it, which stops here "
            "and writes nothing more; the same command starts anew"
        )


def _remove_unused(folder: Path, created: list[Path]) -> None:
    """Remove the lock file, and folders that were created for it, if no stage was begun."""
    with contextlib.suppress(OSError):
        stages = [path for path in folder.iterdir() if path.is_dir()]
        if not any(any(stage.iterdir()) for stage in stages):
            (folder / LOCK_FILE).unlink()
            for path in created:
                path.rmdir()
