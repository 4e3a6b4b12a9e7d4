"""Which channels of a network live and die together."""

from prunekit.graph.channels import ChannelGraph, Group
from prunekit.graph.mask import ChannelMask

__all__ = [
    "ChannelGraph",
    "ChannelMask",
    "Group",
]
