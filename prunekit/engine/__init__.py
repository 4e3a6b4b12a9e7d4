"""The engine behind every entry point: trace, score, select, cut and check a network."""

from prunekit.engine.prune import Pruning, Tune, cut_once, prune
from prunekit.engine.traced import ABSORB, CHECKED, CutOptions, Traced

__all__ = ["ABSORB", "CHECKED", "CutOptions", "Pruning", "Traced", "Tune", "cut_once", "prune"]
