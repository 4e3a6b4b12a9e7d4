"""Which units stay: by zeros, a share, a threshold, a budget, sensitivity curves, or widths.

Every selection keeps the best-scored units of a group; of equal scores the earlier one is better.
Groups without scores stay whole. Settings say what is kept, but for the ratio of `Slimming`, which
is the published share that goes.
"""

import importlib
import pkgutil

from prunekit.selection.base import (
    SELECTIONS,
    Aim,
    Masks,
    Scored,
    Selected,
    Selection,
    best,
    checked,
    protected,
    unscored,
)
from prunekit.selection.budgets import Budget, Budgets, Global, MacsTarget, ParamsTarget
from prunekit.selection.curves import Curve, curves_file, curves_of, read_curves
from prunekit.selection.fixed_widths import LikeRun, Widths, read_plan
from prunekit.selection.latency import LatencyTarget
from prunekit.selection.normalise import MaxNorm, MeanNorm, Normalise, relative_ranks
from prunekit.selection.patterns import ignored
from prunekit.selection.pool import CandidateUnits, FindsWidths
from prunekit.selection.ranking import Limit, Ranked, Ranking, fewest
from prunekit.selection.sensitivity import Sensitivity
from prunekit.selection.uniform import PerLayer, Zeros

for _module in pkgutil.iter_modules(__path__):  # each gives its classes their names
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SELECTIONS",
    "Aim",
    "Budget",
    "Budgets",
    "CandidateUnits",
    "Curve",
    "FindsWidths",
    "Global",
    "LatencyTarget",
    "LikeRun",
    "Limit",
    "MacsTarget",
    "Masks",
    "MaxNorm",
    "MeanNorm",
    "Normalise",
    "ParamsTarget",
    "PerLayer",
    "Ranked",
    "Ranking",
    "Scored",
    "Selected",
    "Selection",
    "Sensitivity",
    "Widths",
    "Zeros",
    "best",
    "checked",
    "curves_file",
    "curves_of",
    "fewest",
    "ignored",
    "protected",
    "read_curves",
    "read_plan",
    "relative_ranks",
    "unscored",
]
