"""One engine for every way to prune a network: trace, score, select, cut, check."""

from prunekit.engine.prune import Pruning, Tune, cut_once, prune
from prunekit.engine.traced import ABSORB, CHECKED, CutOptions, Traced

__all__ = ["ABSORB", "CHECKED", "CutOptions", "Pruning", "Traced", "Tune", "cut_once", "prune"]
