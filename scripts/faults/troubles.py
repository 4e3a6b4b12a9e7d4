"""What happens to a command while it runs, as changes of the process that runs it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from prunekit.training import checkpoint
from prunekit.training.loop import _Trainer

NOBODY = 65534
# these two are written again, from the checkpoint, by every process that goes on
_REPEATED = ("metrics.csv", "seconds")


def bring_about(trouble: dict[str, object]) -> None:
    """Prepare this process for the troubles with these names; numbers count from 1."""
    for name, value in trouble.items():
        TROUBLES[name](value)


def _save_every_step(wanted: object) -> None:
    del wanted
    checkpoint.Checkpoint.__init__.__defaults__ = (0.0,)


def _limit_memory(size: object) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))


def _limit_files(size: object) -> None:
    """Refuse to write files longer than so many bytes, as a full quota does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


def _become_nobody(wanted: object) -> None:
    """Give up the rights of root, which no permission binds."""
    del wanted
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _after_files(count: object, act: Callable[[], None]) -> None:
    """Act as soon as so many files have taken their names."""
    replace, left = os.replace, [int(count)]

    def counted(draft: object, path: object) -> None:
        replace(draft, path)
        left[0] -= os.path.basename(str(path)) not in _REPEATED
        if left[0] == 0:
            act()

    os.replace = counted


def _before_name(count: object, act: Callable[[], None]) -> None:
    """Act when the so-manyth file is written but does not have its name yet."""
    fsync, left = os.fsync, [int(count)]

    def counted(stream: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            act()
        fsync(stream)

    os.fsync = counted


def _in_step(count: object, act: Callable[[], None]) -> None:
    """Act in the so-manyth optimizer step."""
    step, left = _Trainer.step, [int(count)]

    def counted(trainer: _Trainer, chunk: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            act()
        return step(trainer, chunk)

    _Trainer.step = counted


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def _failure(code: str) -> Callable[[], None]:
    def fail() -> None:
        number = getattr(errno, code)
        raise OSError(number, os.strerror(number))

    return fail


def _vanish() -> None:
    shutil.rmtree(Path("outputs"), ignore_errors=True)


TROUBLES: dict[str, Callable[[object], None]] = {
    "save_every_step": _save_every_step,
    "memory": _limit_memory,
    "file_size": _limit_files,
    "nobody": _become_nobody,
    "kill_after_files": lambda count: _after_files(count, _kill),
    "kill_before_name": lambda count: _before_name(count, _kill),
    "kill_in_step": lambda count: _in_step(count, _kill),
    "terminate_in_step": lambda count: _in_step(count, _terminate),
    "terminate_after_files": lambda count: _after_files(count, _terminate),
    "interrupt_in_step": lambda count: _in_step(count, _interrupt),
    "vanish_before_name": lambda count: _before_name(count, _vanish),
    **{
        f"{code}_before_name": lambda count, code=code: _before_name(count, _failure(code))
        for code in ("ENOSPC", "EROFS", "EDQUOT", "EIO", "EACCES")
    },
}
