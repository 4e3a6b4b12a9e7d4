"""Which units stay: zeros go, a share per layer or over all, a budget, or given widths.

Every selection keeps the best-scored units of a group; of equal scores the earlier one is better.
Groups without scores stay whole. Every setting says what is kept, never what goes.
"""

from prunekit.selection.base import Masks, Selection, best, checked, protected, untouched
from prunekit.selection.normalise import MaxNorm, MeanNorm, Normalise
from prunekit.selection.ranked import Budgets, Global, MacsTarget, ParamsTarget, Ranking, fewest
from prunekit.selection.shares import LikeRun, PerLayer, Widths, Zeros, read_plan

__all__ = [
    "Budgets",
    "Global",
    "LikeRun",
    "MacsTarget",
    "Masks",
    "MaxNorm",
    "MeanNorm",
    "Normalise",
    "ParamsTarget",
    "PerLayer",
    "Ranking",
    "Selection",
    "Widths",
    "Zeros",
    "best",
    "checked",
    "fewest",
    "protected",
    "read_plan",
    "untouched",
]
