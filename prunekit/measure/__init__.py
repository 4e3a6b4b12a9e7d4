"""What a network costs: multiply-adds, parameters, latency, memory."""

from prunekit.measure.flops import counted_macs
from prunekit.measure.latency import Latency, compare_latency
from prunekit.measure.memory import file_bytes, nonzero_params, peak_activations, sparsity

__all__ = [
    "Latency",
    "compare_latency",
    "counted_macs",
    "file_bytes",
    "nonzero_params",
    "peak_activations",
    "sparsity",
]
