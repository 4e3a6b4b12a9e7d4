"""Initialisation as in network slimming, and the settings that several networks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import nn

from prunekit.schema import Count, Entries

Classes = Annotated[Count, "number of classes"]
ThreeWidths = Annotated[Sequence[Count], Entries(3), "widths of the three stages"]
Scale = Annotated[float, "initial scale of batch norms"]


def init_for_slimming(module: nn.Module, scale: float) -> None:
    """Initialise a convolution or batch norm as in Liu et al. 2017; leave other layers alone.

    Convolutions are normal with variance 2 / (k k outputs), batch norms have scale `scale` and
    shift 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.BatchNorm2d):
        nn.init.constant_(module.weight, scale)
