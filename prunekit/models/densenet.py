"""DenseNets without bottlenecks and compression, for 32 x 32 images (Huang et al. 2017).

Channel selections, which network slimming puts into them, are no part of the network;
`prunekit.surgery` inserts them.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.models.init import Classes, Scale, start_slimming
from prunekit.schema import Count

Stem = Annotated[Count, "outputs of the first convolution"]


class DenseNet(nn.Module):
    """A stem, three dense blocks of `layers` layers each, global average pooling, a linear layer.

    Depth is 3 * layers + 4. Each layer adds `growth` channels to the `stem` ones; `scale` is where
    the weights of all batch norms start.
    """

    def __init__(
        self,
        layers: int = 12,
        classes: int = 10,
        growth: int = 12,
        stem: int = 24,
        scale: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        ends = [stem + growth * layers * count for count in range(4)]
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.block1 = _block(ends[0], growth, layers)
        self.transition1 = Transition(ends[1])
        self.block2 = _block(ends[1], growth, layers)
        self.transition2 = Transition(ends[2])
        self.block3 = _block(ends[2], growth, layers)
        self.bn = nn.BatchNorm2d(ends[3])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(ends[3], classes)
        self.apply(partial(start_slimming, scale=scale))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.transition1(self.block1(self.conv1(images)))
        hidden = self.block3(self.transition2(self.block2(hidden)))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3 x 3 convolution, whose outputs follow the inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """All channels so far, and the layer's own behind them."""
        return torch.cat([hidden, self.conv(self.relu(self.bn(hidden)))], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, a 1 x 1 convolution of the same width, and half the height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Images with half the height and width."""
        return F.avg_pool2d(self.conv(self.relu(self.bn(hidden))), 2)


def densenet40(classes: Classes = 10, stem: Stem = 24, scale: Scale = 0.5) -> DenseNet:
    """DenseNet-40 with growth 12, of network slimming: 1,059,298 parameters for 10 classes.

    282,917,328 multiply-adds. A stem of 24 is the released code's; `stem=16` is the network whose
    size Liu et al. 2017 report (1.02M). Batch norms start at `scale`, 0.5 in that paper.
    """
    return DenseNet(12, classes, stem=stem, scale=scale)


def _block(inputs: int, growth: int, layers: int) -> nn.Sequential:
    widths = range(inputs, inputs + growth * layers, growth)
    return nn.Sequential(*(DenseLayer(width, growth) for width in widths))
