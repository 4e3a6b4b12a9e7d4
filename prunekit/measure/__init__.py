"""What a network costs: multiply-adds, parameters, latency, memory."""

from prunekit.measure.cost import CostModel
from prunekit.measure.features import Features, features_of
from prunekit.measure.flops import counted_macs
from prunekit.measure.latency import Latency, LatencyTest
from prunekit.measure.latency_table import Clock, Compared, TimedCost
from prunekit.measure.layers import layer_rows
from prunekit.measure.memory import file_bytes, nonzero_params, peak_memory, sparsity
from prunekit.measure.tsne import TSNE, silhouette

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
