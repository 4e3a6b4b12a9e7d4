"""Network slimming: channels go by their batch-norm scales (Liu et al. 2017)."""

from prunekit.methods.slimming.channel_selector import (
    ChannelSelector,
    InsertChannelSelectors,
    shared_norms,
)
from prunekit.methods.slimming.flops import slimming_flops, slimming_params
from prunekit.methods.slimming.selection import Slimming

__all__ = [
    "ChannelSelector",
    "InsertChannelSelectors",
    "Slimming",
    "shared_norms",
    "slimming_flops",
    "slimming_params",
]
