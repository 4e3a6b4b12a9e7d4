"""Hinge: filters are pruned and decomposed by sparsity-inducing matrices (Li et al. 2020)."""

from prunekit.methods.hinge.edits import Fold, Folded, InsertMatrices, fold, layers_with_matrix
from prunekit.methods.hinge.matrices import FoldedCost, Hinged, Matrices, MatrixNorm, Site
from prunekit.methods.hinge.placement import Placement
from prunekit.methods.hinge.solver import Annealing, Hinge
from prunekit.methods.hinge.threshold import StopNearBudget, Threshold

__all__ = [
    "Annealing",
    "Fold",
    "Folded",
    "FoldedCost",
    "Hinge",
    "Hinged",
    "InsertMatrices",
    "Matrices",
    "MatrixNorm",
    "Placement",
    "Site",
    "StopNearBudget",
    "Threshold",
    "fold",
    "layers_with_matrix",
]
