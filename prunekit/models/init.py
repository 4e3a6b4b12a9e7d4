"""How the networks that network slimming reports on start."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from prunekit.schema import Count

Classes = Annotated[Count, "outputs of the network, one for each class"]
Scale = Annotated[float, "what batch-norm scales start at"]


def start_slimming(module: nn.Module, scale: float) -> None:
    """Set one convolution or batch norm to its start in Liu et al. 2017; other layers stay.

    Convolutions start normal with variance 2 / (k k outputs), batch norms at `scale` and shift 0.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.BatchNorm2d):
        nn.init.constant_(module.weight, scale)
