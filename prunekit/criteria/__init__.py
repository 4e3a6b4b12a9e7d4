"""How much is a unit worth: random, weight norms, scales, activations, or scores in a file."""

from prunekit.criteria.activations import APoZ, Taylor
from prunekit.criteria.base import Criterion, Scores
from prunekit.criteria.stored import Stored, load_scores, save_scores
from prunekit.criteria.weights import BatchNormScale, L1Norm, L2Norm, Random

__all__ = [
    "APoZ",
    "BatchNormScale",
    "Criterion",
    "L1Norm",
    "L2Norm",
    "Random",
    "Scores",
    "Stored",
    "Taylor",
    "load_scores",
    "save_scores",
]
