"""Small networks, one for every way to tie channels together: `PATTERNS`, by name."""

from __future__ import annotations

from torch import nn

from patterns.base import Pattern, randomise
from patterns.blocks import BLOCKS
from patterns.layers import LAYERS
from patterns.moves import MOVES
from patterns.selected import SELECTED
from patterns.values import VALUES

__all__ = ["PATTERNS", "Pattern", "network", "randomise"]

PATTERNS: dict[str, Pattern] = {**LAYERS, **MOVES, **VALUES, **BLOCKS, **SELECTED}


def network(name: str, seed: int = 0) -> nn.Module:
    """The network of a pattern, as model files name it."""
    return PATTERNS[name].network(seed)
