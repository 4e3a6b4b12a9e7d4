"""Find out which size a forward takes off a shape, from the instructions that follow the read."""

from __future__ import annotations

import dis
import sys
from functools import lru_cache
from pathlib import Path
from types import CodeType, FrameType

_HERE = str(Path(__file__).parent)
_CODES = 1024  # functions whose instructions are remembered


def item_taken() -> int | None:
    """Return the item that the code takes off the shape it reads right now, as in `x.shape[1]`.

    Return None where it may do anything else with the shape. All sizes may matter then: Python does
    not report that an integer becomes the end of a `range` or goes to another library.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return None if frame is None else _items_taken(frame.f_code).get(frame.f_lasti)


@lru_cache(_CODES)
def _items_taken(code: CodeType) -> dict[int, int]:
    """Return the items that code takes off shapes at once, by the offsets of the reads."""
    steps = [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    return {
        read.offset: index.argval
        for read, index, take in zip(steps, steps[1:], steps[2:], strict=False)
        if (read.opname, read.argval) == ("LOAD_ATTR", "shape")
        and index.opname in ("LOAD_CONST", "LOAD_SMALL_INT")
        and type(index.argval) is int
        and (take.opname == "BINARY_SUBSCR" or (take.opname, take.argrepr) == ("BINARY_OP", "[]"))
    }
