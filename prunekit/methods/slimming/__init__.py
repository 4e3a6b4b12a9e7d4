"""Network slimming: channels go by their batch-norm scales (Liu et al. 2017)."""

from prunekit.methods.slimming.flops import slimming_flops, slimming_params
from prunekit.methods.slimming.insertion import Selections
from prunekit.methods.slimming.selection import Slimming
from prunekit.methods.slimming.selector import ChannelSelection
from prunekit.methods.slimming.shared_norms import shared_norms

__all__ = [
    "ChannelSelection",
    "Selections",
    "Slimming",
    "shared_norms",
    "slimming_flops",
    "slimming_params",
]
