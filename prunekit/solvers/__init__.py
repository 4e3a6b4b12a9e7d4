"""Solvers: hooks around the optimizer's step that make training minimise loss + penalty."""

from prunekit.solvers.base import SOLVERS, Solver, check_fit, learning_rate, small_norm_shares
from prunekit.solvers.gradient import KeepZeros, Proximal, Subgradient
from prunekit.solvers.splitting import ADMM, AULM, PALM
from prunekit.solvers.strength import fitting_strength

__all__ = [
    "ADMM",
    "AULM",
    "PALM",
    "SOLVERS",
    "KeepZeros",
    "Proximal",
    "Solver",
    "Subgradient",
    "check_fit",
    "fitting_strength",
    "learning_rate",
    "small_norm_shares",
]
