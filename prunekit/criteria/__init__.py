"""How much is a unit worth: norms, scales, activations, derivatives, similarities, a file."""

import importlib
import pkgutil

from prunekit.criteria.activations import APoZ, Taylor
from prunekit.criteria.base import CRITERIA, Criterion, Scores
from prunekit.criteria.compared import FPGM, LAMP
from prunekit.criteria.curvature import HessianDiagonal
from prunekit.criteria.hrank import HRank
from prunekit.criteria.stored import Stored, load_scores, save_scores
from prunekit.criteria.weights import BatchNormScale, L1Norm, L2Norm, Random

for _module in pkgutil.iter_modules(__path__):  # each gives its classes their names
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CRITERIA",
    "FPGM",
    "LAMP",
    "APoZ",
    "BatchNormScale",
    "Criterion",
    "HRank",
    "HessianDiagonal",
    "L1Norm",
    "L2Norm",
    "Random",
    "Scores",
    "Stored",
    "Taylor",
    "load_scores",
    "save_scores",
]
