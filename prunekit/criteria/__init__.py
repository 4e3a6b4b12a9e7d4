"""Criteria score units: by norms, scales, activations, derivatives, readers, or a file."""

import importlib
import pkgutil

from prunekit.criteria.base import CRITERIA, Criterion, Scores
from prunekit.criteria.contribution_variance import ContributionVariance
from prunekit.criteria.derivatives import HessianDiagonal, Taylor
from prunekit.criteria.layer_obs import LayerOBS
from prunekit.criteria.relu_outputs import APoZ, HRank
from prunekit.criteria.stored import Stored, load_scores, save_scores
from prunekit.criteria.thinet import ThiNet
from prunekit.criteria.unexplained_variance import UnexplainedVariance
from prunekit.criteria.weights import FPGM, LAMP, BatchNormScale, L1Norm, L2Norm, Random

for _module in pkgutil.iter_modules(__path__):  # each registers its classes
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CRITERIA",
    "FPGM",
    "LAMP",
    "APoZ",
    "BatchNormScale",
    "ContributionVariance",
    "Criterion",
    "HRank",
    "HessianDiagonal",
    "L1Norm",
    "L2Norm",
    "LayerOBS",
    "Random",
    "Scores",
    "Stored",
    "Taylor",
    "ThiNet",
    "UnexplainedVariance",
    "load_scores",
    "save_scores",
]
