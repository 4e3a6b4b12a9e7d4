"""Measure what a network costs: multiply-adds, parameters, latency and memory."""

from prunekit.measure.cost import CostModel, fvcore_macs
from prunekit.measure.features import TSNE, Features, features_of, silhouette
from prunekit.measure.latency import Latency, LatencyTest, layer_records
from prunekit.measure.latency_table import LatencyComparison, LatencySetup, TimedCost
from prunekit.measure.memory import file_bytes, nonzero_params, peak_memory, sparsity

__all__ = [
    "TSNE",
    "CostModel",
    "Features",
    "Latency",
    "LatencyComparison",
    "LatencySetup",
    "LatencyTest",
    "TimedCost",
    "features_of",
    "file_bytes",
    "fvcore_macs",
    "layer_records",
    "nonzero_params",
    "peak_memory",
    "silhouette",
    "sparsity",
]
