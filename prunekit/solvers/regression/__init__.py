"""Solvers of regressions that are given by tables of inner products, with duality gaps."""

from prunekit.solvers.regression.admm import GraphADMM
from prunekit.solvers.regression.fista import FISTA
from prunekit.solvers.regression.path import lasso_path
from prunekit.solvers.regression.problem import Regression, RegressionSolver, Solution
from prunekit.solvers.regression.smoothing import SmoothingProximalGradient

__all__ = [
    "FISTA",
    "GraphADMM",
    "Regression",
    "RegressionSolver",
    "SmoothingProximalGradient",
    "Solution",
    "lasso_path",
]
