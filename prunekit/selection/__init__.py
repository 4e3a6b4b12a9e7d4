"""Selections decide which units are kept: by zeros, shares, budgets, curves, errors or widths.

Every selection keeps the best-scored units of a group; of equal scores the earlier one is better.
Groups without scores are kept whole. Settings give what is kept, except for the ratio of
`Slimming`, which is the published share that is removed.
"""

import importlib
import pkgutil

from prunekit.selection.base import (
    SELECTIONS,
    BudgetResult,
    Masks,
    Scored,
    Selected,
    Selection,
    mask_of_best,
    protect_units,
    unscored_groups,
    validate_scores,
)
from prunekit.selection.budgets import (
    Budget,
    Budgets,
    Global,
    LatencyTarget,
    MacsTarget,
    ParamsTarget,
)
from prunekit.selection.candidates import AdaptiveSelection, CandidateUnits, ignored_groups
from prunekit.selection.losses import LossSelection
from prunekit.selection.ranking import (
    Limit,
    MaxNorm,
    MeanNorm,
    Normalise,
    RankedSelection,
    Ranking,
    min_units_to_remove,
    relative_ranks,
)
from prunekit.selection.refit_error import RefitError
from prunekit.selection.sensitivity import (
    Curve,
    Sensitivity,
    find_curves_file,
    parse_curves,
    read_curves,
)
from prunekit.selection.widths import LikeRun, PerLayer, Widths, Zeros, read_plan

for _module in pkgutil.iter_modules(__path__):  # each registers its classes
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SELECTIONS",
    "AdaptiveSelection",
    "Budget",
    "BudgetResult",
    "Budgets",
    "CandidateUnits",
    "Curve",
    "Global",
    "LatencyTarget",
    "LikeRun",
    "Limit",
    "LossSelection",
    "MacsTarget",
    "Masks",
    "MaxNorm",
    "MeanNorm",
    "Normalise",
    "ParamsTarget",
    "PerLayer",
    "RankedSelection",
    "Ranking",
    "RefitError",
    "Scored",
    "Selected",
    "Selection",
    "Sensitivity",
    "Widths",
    "Zeros",
    "find_curves_file",
    "ignored_groups",
    "mask_of_best",
    "min_units_to_remove",
    "parse_curves",
    "protect_units",
    "read_curves",
    "read_plan",
    "relative_ranks",
    "unscored_groups",
    "validate_scores",
]
