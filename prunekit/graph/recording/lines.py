"""Lines of the user's code that a run is at."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

Line = tuple[str, int]

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_HERE = f"{Path(__file__).parents[1]}{os.sep}"


def place_of(line: Line | None) -> str:
    """A line of the user's code, for messages."""
    return f"{Path(line[0]).name}:{line[1]}" if line else "forward"


def in_torch(file: str) -> bool:
    """Whether a source file is torch's, or one of the recorder: no line to show a user."""
    return file.startswith((_TORCH, _HERE, "<"))


def current_line() -> Line | None:
    """The innermost line of the user's code; None where there is none."""
    frame = sys._getframe(1)
    while frame is not None and in_torch(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
