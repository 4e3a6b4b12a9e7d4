"""Pre-activation bottleneck ResNets for 32 x 32 images (He et al. 2016, "identity mappings").

As network slimming reports on them: the shortcut is fed with the raw input of its block, and has
no batch norm. Channel selections are no part of the network; `prunekit.surgery` inserts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from prunekit.models.init import Classes, Scale, start_slimming


class PreResNet(nn.Module):
    """A stem, three stages of `blocks` bottlenecks each, norm, global pooling, one linear layer.

    Depth is 9 * blocks + 2. `widths` are the inner channels of the three stages, whose outputs
    have four times as many; `stem` are the channels before them, `scale` is where the weights of
    all batch norms start.
    """

    def __init__(
        self,
        blocks: int = 18,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        stem: int = 16,
        scale: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(4 * first, second, blocks, stride=2)
        self.layer3 = _stage(4 * second, third, blocks, stride=2)
        self.bn = nn.BatchNorm2d(4 * third)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * third, classes)
        self.apply(partial(start_slimming, scale=scale))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))


class Bottleneck(nn.Module):
    """Norm and ReLU before each of three convolutions, 1 x 1, 3 x 3, 1 x 1, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output; its inner widths may differ from its outer one after pruning."""
        branch = self.conv1(self.relu1(self.bn1(hidden)))
        branch = self.conv2(self.relu2(self.bn2(branch)))
        branch = self.conv3(self.relu3(self.bn3(branch)))
        return branch + self.shortcut(hidden)


def preresnet164(classes: Classes = 10, scale: Scale = 0.5) -> PreResNet:
    """ResNet-164 of network slimming (Liu et al. 2017), 1,703,258 parameters for 10 classes.

    247,646,720 multiply-adds. Batch norms start at `scale`, 0.5 in that paper.
    """
    return PreResNet(18, classes, scale=scale)


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))
