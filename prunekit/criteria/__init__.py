"""How much is a unit worth: norms, scales, distances, activations, derivatives, a file."""

from prunekit.criteria.activations import APoZ, Taylor
from prunekit.criteria.base import Criterion, Scores
from prunekit.criteria.compared import FPGM, LAMP
from prunekit.criteria.curvature import HessianDiagonal
from prunekit.criteria.hrank import HRank
from prunekit.criteria.matrices import MatrixNorm
from prunekit.criteria.stored import Stored, load_scores, save_scores
from prunekit.criteria.weights import BatchNormScale, L1Norm, L2Norm, Random

__all__ = [
    "FPGM",
    "LAMP",
    "APoZ",
    "BatchNormScale",
    "Criterion",
    "HRank",
    "HessianDiagonal",
    "L1Norm",
    "L2Norm",
    "MatrixNorm",
    "Random",
    "Scores",
    "Stored",
    "Taylor",
    "load_scores",
    "save_scores",
]
