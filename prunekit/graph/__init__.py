"""Which channels of a network live and die together."""

from prunekit.graph.channels import ChannelGraph, Group
from prunekit.graph.hinged import Hinged, Site
from prunekit.graph.mask import ChannelMask
from prunekit.graph.placement import Placement
from prunekit.graph.select import ChannelSelection
from prunekit.graph.shared import shared_norms

__all__ = [
    "ChannelGraph",
    "ChannelMask",
    "ChannelSelection",
    "Group",
    "Hinged",
    "Placement",
    "Site",
    "shared_norms",
]
