"""Which channels of a network live and die together."""

from prunekit.graph.channels import ChannelGraph, Group

__all__ = ["ChannelGraph", "Group"]
