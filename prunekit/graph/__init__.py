"""Channel graphs say which channels of a network have to be removed together."""

from prunekit.graph.channels import ChannelGraph, Group
from prunekit.graph.mask import ChannelMask

__all__ = [
    "ChannelGraph",
    "ChannelMask",
    "Group",
]
