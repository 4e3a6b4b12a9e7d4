"""Solvers: hooks around the optimizer's step that make training minimise loss + penalty."""

from prunekit.solvers.aulm import ADMM, AULM
from prunekit.solvers.base import SOLVERS, Solver, below, check_fit, learning_rate
from prunekit.solvers.keep_zeros import KeepZeros
from prunekit.solvers.palm import PALM
from prunekit.solvers.proximal import Proximal
from prunekit.solvers.subgradient import Subgradient

__all__ = [
    "ADMM",
    "AULM",
    "PALM",
    "SOLVERS",
    "KeepZeros",
    "Proximal",
    "Solver",
    "Subgradient",
    "below",
    "check_fit",
    "learning_rate",
]
