"""The former paths of public classes, so that old settings and run directories are understood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# package or module -> former paths of classes that keep their name in it
_MOVED = {
    "prunekit.methods.gram_lasso": """
        prunekit.criteria.APIB
        prunekit.criteria.Above
        prunekit.criteria.EntryOrder
        prunekit.criteria.Graph
        prunekit.criteria.Hierarchy
        prunekit.criteria.MaxCKA
        prunekit.criteria.Nearest
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
        prunekit.selection.Threshold
        prunekit.solvers.Annealing
        prunekit.solvers.Hinge
        prunekit.targets.Matrices
    """,
    "prunekit.methods.slimming": """
        prunekit.selection.Slimming
    """,
    "prunekit.stages.finetune": """
        prunekit.stages.teacher.Distill
    """,
    "prunekit.training": """
        prunekit.problems.Joint
        prunekit.problems.Layerwise
    """,
}
# present path -> former paths of a class with another name
_RENAMED = {
    "prunekit.methods.gram_lasso.LambdaBisection": """
        prunekit.criteria.PublishedSearch
    """,
    "prunekit.methods.hinge.StopNearBudget": """
        prunekit.problems.Until
    """,
    "prunekit.stages.sensitivity.SensitivityGrid": """
        prunekit.stages.sensitivity.Probe
    """,
}
RENAMED = {
    former: f"{package}.{former.rpartition('.')[2]}"
    for package, names in _MOVED.items()
    for former in names.split()
} | {former: path for path, names in _RENAMED.items() for former in names.split()}


def current_path(path: str) -> str | None:
    """Return the present path of a class that moved; None for any other path."""
    return RENAMED.get(path)


def current(settings: Any) -> Any:
    """Return recorded settings with every `_target_` by its present path."""
    if isinstance(settings, Mapping):
        return {
            key: RENAMED.get(value, value) if key == "_target_" else current(value)
            for key, value in settings.items()
        }
    if isinstance(settings, Sequence) and not isinstance(settings, str):
        return [current(value) for value in settings]
    return settings
