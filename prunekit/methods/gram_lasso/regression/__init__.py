"""Solvers of regressions that are given by tables of inner products, with duality gaps."""

from prunekit.methods.gram_lasso.regression.admm import GraphADMM
from prunekit.methods.gram_lasso.regression.fista import FISTA
from prunekit.methods.gram_lasso.regression.path import lasso_path
from prunekit.methods.gram_lasso.regression.problem import Regression, RegressionSolver, Solution
from prunekit.methods.gram_lasso.regression.smoothing import SmoothingProximalGradient

__all__ = [
    "FISTA",
    "GraphADMM",
    "Regression",
    "RegressionSolver",
    "SmoothingProximalGradient",
    "Solution",
    "lasso_path",
]
