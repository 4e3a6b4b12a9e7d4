"""Bottleneck ResNets for 32 x 32 images with the activation behind the addition (He et al. 2016).

As Hinge reports on them; with pre-activation they are in `preresnet`. Convolutions start normal
with variance 2 / (k k outputs), batch norms with scale 1 and shift 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from prunekit.models.init import Classes, start_slimming


class BottleneckResNet(nn.Module):
    """A stem, three stages of `blocks` bottlenecks each, global average pooling, one linear layer.

    Depth is 9 * blocks + 2. `widths` are the inner channels of the three stages, whose outputs
    have four times as many; `stem` are the channels before them.
    """

    def __init__(
        self,
        blocks: int = 18,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        stem: int = 16,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = stage(stem, first, 4 * first, blocks, stride=1)
        self.layer2 = stage(4 * first, second, 4 * second, blocks, stride=2)
        self.layer3 = stage(4 * second, third, 4 * third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * third, classes)
        self.apply(partial(start_slimming, scale=1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.flatten(self.pool(hidden)))


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1, each with a norm, and a shortcut around them.

    The 3 x 3 has `inner` channels on both sides, in `groups`, and the stride. Where the shape
    changes the shortcut is a 1 x 1 convolution with a norm (option C).
    """

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _projection(inputs, outputs, stride)
        self.relu3 = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output; its inner width may differ from its outer one after pruning."""
        branch = self.relu1(self.bn1(self.conv1(hidden)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.bn3(self.conv3(branch)) + self.shortcut(hidden))


def resnet164(classes: Classes = 10) -> BottleneckResNet:
    """ResNet-164 of Hinge (Li et al. 2020), 1,704,154 parameters for 10 classes."""
    return BottleneckResNet(18, classes)


def stage(
    inputs: int, inner: int, outputs: int, blocks: int, stride: int, groups: int = 1
) -> nn.Sequential:
    """Bottlenecks in a row, of which the first changes the shape."""
    first = Bottleneck(inputs, inner, outputs, stride, groups)
    others = (Bottleneck(outputs, inner, outputs, 1, groups) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))
