"""What a network costs: multiply-adds, parameters, latency, memory."""

from prunekit.measure.cost import CostModel, counted_macs
from prunekit.measure.features import TSNE, Features, features_of, silhouette
from prunekit.measure.latency import Latency, LatencyTest, layer_rows
from prunekit.measure.latency_table import Clock, Compared, TimedCost
from prunekit.measure.memory import file_bytes, nonzero_params, peak_memory, sparsity

__all__ = [
    "TSNE",
    "Clock",
    "Compared",
    "CostModel",
    "Features",
    "Latency",
    "LatencyTest",
    "TimedCost",
    "counted_macs",
    "features_of",
    "file_bytes",
    "layer_rows",
    "nonzero_params",
    "peak_memory",
    "silhouette",
    "sparsity",
]
