"""SIGTERM as an exception, which waits for the end of work that must not be cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(BaseException):
    """Ends a command that received SIGTERM; like KeyboardInterrupt it is no error."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise Terminated inside the block when the process receives SIGTERM.

    Nothing changes in threads, which receive no signals, and where the program around handles
    SIGTERM in its own way.
    """
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def postponed() -> Iterator[None]:
    """Let a SIGTERM that arrives inside the block raise Terminated at its end.

    Outside of `terminable` this does nothing.
    """
    if not _is_main_thread() or signal.getsignal(signal.SIGTERM) is not _terminate:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, _terminate)
    if received:
        raise Terminated


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
