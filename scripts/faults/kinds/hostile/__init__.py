"""Files of strangers: they must neither run code nor spoil anything, and be refused readably."""

from __future__ import annotations

from scripts.faults.campaign import Fault
from scripts.faults.kinds.hostile import links, malformed, pickles, texts


def faults() -> list[Fault]:
    """Return pickles that run code, malformed models and checkpoints, texts, and links."""
    return [*pickles.faults(), *malformed.faults(), *texts.faults(), *links.faults()]
