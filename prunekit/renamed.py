"""Former places of public classes, so that what was written before still says the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOVED = {
    "prunekit.methods.gram_lasso": """
        prunekit.criteria.APIB
        prunekit.criteria.Above
        prunekit.criteria.EntryOrder
        prunekit.criteria.Graph
        prunekit.criteria.Hierarchy
        prunekit.criteria.MaxCKA
        prunekit.criteria.Nearest
        prunekit.criteria.Ordering
        prunekit.criteria.PublishedSearch
        prunekit.criteria.Representatives
        prunekit.criteria.Strongest
        prunekit.criteria.Structure
        prunekit.criteria.StructuredLasso
        prunekit.penalties.BlockTreeLasso
        prunekit.penalties.Edges
        prunekit.penalties.GraphLasso
        prunekit.penalties.Tree
        prunekit.penalties.TreeLasso
        prunekit.similarity.Calibration
        prunekit.similarity.Centring
        prunekit.similarity.ClassBlocks
        prunekit.similarity.ClassProfiles
        prunekit.similarity.Columns
        prunekit.similarity.Gaussian
        prunekit.similarity.Grams
        prunekit.similarity.HKH
        prunekit.similarity.Kernel
        prunekit.similarity.Laplacian
        prunekit.similarity.Linear
        prunekit.similarity.Maps
        prunekit.similarity.RawMaps
        prunekit.similarity.Responses
        prunekit.similarity.Sigmoid
        prunekit.similarity.Statistics
        prunekit.similarity.Tables
        prunekit.similarity.Unbiased
        prunekit.similarity.WholeOutput
        prunekit.similarity.tables_of
        prunekit.solvers.regression.FISTA
        prunekit.solvers.regression.GraphADMM
        prunekit.solvers.regression.Regression
        prunekit.solvers.regression.RegressionSolver
        prunekit.solvers.regression.SmoothingProximalGradient
        prunekit.solvers.regression.Solution
        prunekit.solvers.regression.lasso_path
    """,
    "prunekit.methods.hinge": """
        prunekit.criteria.MatrixNorm
        prunekit.graph.Hinged
        prunekit.graph.Placement
        prunekit.graph.Site
        prunekit.measure.FoldedCost
        prunekit.problems.Until
        prunekit.selection.Threshold
        prunekit.solvers.Annealing
        prunekit.solvers.Hinge
        prunekit.surgery.Attach
        prunekit.surgery.Fold
        prunekit.surgery.Folded
        prunekit.surgery.attached
        prunekit.surgery.fold
        prunekit.targets.Matrices
    """,
    "prunekit.methods.slimming": """
        prunekit.graph.ChannelSelection
        prunekit.graph.shared_norms
        prunekit.measure.slimming_flops
        prunekit.measure.slimming_params
        prunekit.selection.Slimming
        prunekit.surgery.Selections
    """,
    "prunekit.training": """
        prunekit.problems.Joint
        prunekit.problems.Layerwise
        prunekit.problems.Regularizer
        prunekit.problems.Training
    """,
}
_NOW = {
    former: f"{package}.{former.rpartition('.')[2]}"
    for package, names in _MOVED.items()
    for former in names.split()
}


def current_path(path: str) -> str | None:
    """Return the dotted path that a class has now; None if this one never was another's."""
    return _NOW.get(path)


def current(settings: Any) -> Any:
    """Return recorded settings with every `_target_` by its present path."""
    if isinstance(settings, Mapping):
        return {
            key: _NOW.get(value, value) if key == "_target_" else current(value)
            for key, value in settings.items()
        }
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return [current(value) for value in settings]
    return settings
