"""Network slimming: channels go by their batch-norm scales (Liu et al. 2017)."""

from prunekit.methods.slimming.flops import slimming_flops, slimming_params
from prunekit.methods.slimming.insertion import InsertChannelSelectors
from prunekit.methods.slimming.selection import Slimming
from prunekit.methods.slimming.selector import ChannelSelector
from prunekit.methods.slimming.shared_norms import shared_norms

__all__ = [
    "ChannelSelector",
    "InsertChannelSelectors",
    "Slimming",
    "shared_norms",
    "slimming_flops",
    "slimming_params",
]
