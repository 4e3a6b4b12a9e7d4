"""The entries of the table of operations, a file for each family; importing them fills it."""

from prunekit.graph.ops import elementwise, indexing, norms, pooling, products, reshape, weights

__all__ = ["elementwise", "indexing", "norms", "pooling", "products", "reshape", "weights"]
