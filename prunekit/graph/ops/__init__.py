"""The entries of the table of operations, a file for each family; importing them fills it."""

from prunekit.graph.ops import (
    activations,
    arithmetic,
    made,
    moves,
    norms,
    parts,
    pools,
    weights,
)

__all__ = ["activations", "arithmetic", "made", "moves", "norms", "parts", "pools", "weights"]
