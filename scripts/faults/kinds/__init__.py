"""The kinds of faults, with the least number of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from scripts.faults.campaign import Fault
from scripts.faults.kinds import (
    damage,
    hostile,
    images,
    inputs,
    kills,
    names,
    overrides,
    places,
    starts,
)


@dataclass(frozen=True)
class Kind:
    """A kind of faults: its line in the table, and how many there are at least."""

    name: str
    title: str
    least: int
    faults: Callable[[], list[Fault]]


KINDS = (
    Kind("kill", "killed, terminated, interrupted", 40, kills.faults),
    Kind("damage", "files cut off, bits flipped", 60, damage.faults),
    Kind("places", "full, read-only, vanished places", 20, places.faults),
    Kind("starts", "simultaneous starts", 30, starts.faults),
    Kind("inputs", "inputs changed between two starts", 20, inputs.faults),
    Kind("hostile", "hostile files", 200, hostile.faults),
    Kind("images", "damaged images, dead workers", 60, images.faults),
    Kind("names", "odd names", 60, names.faults),
    Kind("overrides", "wrong settings", 60, overrides.faults),
)


@cache
def all_faults() -> tuple[Fault, ...]:
    """Return all faults, kind by kind, always in the same order."""
    return tuple(fault for kind in KINDS for fault in kind.faults())
