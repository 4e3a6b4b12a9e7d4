"""Which units stay: zeros go, a share per layer or over all, a budget, or given widths.

Every selection keeps the best-scored units of a group; of equal scores the earlier one is better.
Groups without scores stay whole. Every setting says what is kept, never what goes.
"""

from prunekit.selection.base import Aim, Masks, Selection, best, checked, protected, untouched
from prunekit.selection.budgets import Budget, Budgets, Global, MacsTarget, ParamsTarget
from prunekit.selection.latency import LatencyTarget
from prunekit.selection.normalise import MaxNorm, MeanNorm, Normalise, relative_ranks
from prunekit.selection.patterns import ignored
from prunekit.selection.pool import FindsWidths, Pool
from prunekit.selection.ranking import Limit, Ranked, Ranking, fewest
from prunekit.selection.shares import PerLayer, Zeros
from prunekit.selection.widths import LikeRun, Widths, read_plan

__all__ = [
    "Aim",
    "Budget",
    "Budgets",
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
    "Pool",
    "Ranked",
    "Ranking",
    "Selection",
    "Widths",
    "Zeros",
    "best",
    "checked",
    "fewest",
    "ignored",
    "protected",
    "read_plan",
    "relative_ranks",
    "untouched",
]
