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
        prunekit.criteria.PublishedSearch
        prunekit.criteria.Representatives
        prunekit.criteria.Strongest
        prunekit.criteria.StructuredLasso
        prunekit.similarity.Calibration
        prunekit.similarity.ClassBlocks
        prunekit.similarity.ClassProfiles
        prunekit.similarity.Gaussian
        prunekit.similarity.Grams
        prunekit.similarity.Laplacian
        prunekit.similarity.Linear
        prunekit.similarity.RawMaps
        prunekit.similarity.Sigmoid
        prunekit.similarity.Statistics
        prunekit.solvers.regression.FISTA
        prunekit.solvers.regression.GraphADMM
    """,
    "prunekit.methods.hinge": """
        prunekit.criteria.MatrixNorm
        prunekit.graph.Placement
        prunekit.problems.Until
        prunekit.selection.Threshold
        prunekit.solvers.Annealing
        prunekit.solvers.Hinge
        prunekit.targets.Matrices
    """,
    "prunekit.methods.slimming": """
        prunekit.selection.Slimming
    """,
    "prunekit.training": """
        prunekit.problems.Joint
        prunekit.problems.Layerwise
    """,
}
_NOW = {
    former: f"{package}.{former.rpartition('.')[2]}"
    for package, names in _MOVED.items()
    for former in names.split()
}


def current_path(path: str) -> str | None:
    """Return the present path of a class that moved; None for a path that never was a class's."""
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
