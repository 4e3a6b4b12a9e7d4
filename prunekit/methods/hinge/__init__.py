"""Hinge: filters are pruned and decomposed by sparsity-inducing matrices (Li et al. 2020)."""

from prunekit.methods.hinge.cost import FoldedCost
from prunekit.methods.hinge.criterion import MatrixNorm
from prunekit.methods.hinge.edits import Fold, Folded, InsertMatrices, fold, layers_with_matrix
from prunekit.methods.hinge.module import Hinged, Site
from prunekit.methods.hinge.placement import Placement
from prunekit.methods.hinge.solver import Annealing, Hinge
from prunekit.methods.hinge.stopping import Until
from prunekit.methods.hinge.target import Matrices
from prunekit.methods.hinge.threshold import Threshold

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
    "Threshold",
    "Until",
    "fold",
    "layers_with_matrix",
]
