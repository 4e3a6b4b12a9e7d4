"""DenseNets without bottlenecks and compression, for 32 x 32 images (Huang et al. 2017).

The channel selectors of network slimming are not part of the network; `prunekit.methods.slimming`
inserts them.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.models.init import Classes, Scale, init_for_slimming
from prunekit.schema import Count

Stem = Annotated[Count, "outputs of the first convolution"]


class DenseNet(nn.Module):
    """A stem, three dense blocks of `layers` layers each, global average pooling, a linear layer.

    Depth is 3 * layers + 4. The stem has `stem` channels and each layer adds `growth`; `scale` is
    the initial scale of all batch norms.
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
        self.apply(partial(init_for_slimming, scale=scale))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
        hidden = self.transition1(self.block1(self.conv1(images)))
        hidden = self.block3(self.transition2(self.block2(hidden)))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))


class DenseLayer(nn.Module):
    """Norm, ReLU and a 3 x 3 convolution, whose outputs are concatenated to the inputs."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the input channels followed by the layer's own."""
        return torch.cat([hidden, self.conv(self.relu(self.bn(hidden)))], dim=1)


class Transition(nn.Module):
    """Norm, ReLU, a 1 x 1 convolution of the same width, and 2 x 2 average pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return feature maps with half the height and width."""
        return F.avg_pool2d(self.conv(self.relu(self.bn(hidden))), 2)


def densenet40(classes: Classes = 10, stem: Stem = 24, scale: Scale = 0.5) -> DenseNet:
    """Build the DenseNet-40 with growth 12 of network slimming (Liu et al. 2017).

    It has 1,059,298 parameters for 10 classes and 282,917,328 multiply-adds. The stem of 24 is that
    of the released code; the paper's size (1.02M) is that of `stem=16`. Batch norms start with
    `scale`, 0.5 in that paper.
    """
    return DenseNet(12, classes, stem=stem, scale=scale)


def _block(inputs: int, growth: int, layers: int) -> nn.Sequential:
    widths = range(inputs, inputs + growth * layers, growth)
    return nn.Sequential(*(DenseLayer(width, growth) for width in widths))
