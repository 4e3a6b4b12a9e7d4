"""CIFAR ResNets with parameter-free shortcuts (He et al. 2016, option A).

Parameter names are those of the widely used checkpoints by akamaster, so these load. Convolutions
and the linear layer start as `kaiming_normal_`, batch norms with scale 1 and shift 0.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.models.init import Classes


class ResNet(nn.Module):
    """A stem, three stages of `blocks` basic blocks each, global average pooling, one linear layer.

    Depth is 6 * blocks + 2. `widths` are the channels of the three stages.
    """

    def __init__(
        self,
        blocks: int = 3,
        classes: int = 10,
        widths: Sequence[int] = (16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(third, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.flatten(self.pool(hidden)))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else PadShortcut(outputs - inputs, stride)
        self.relu2 = nn.ReLU()

    def forward(self, hidden: Tensor) -> Tensor:
        """The block's output; its inner width may differ from its outer one after pruning."""
        branch = self.relu1(self.bn1(self.conv1(hidden)))
        return self.relu2(self.bn2(self.conv2(branch)) + self.shortcut(hidden))


class PadShortcut(nn.Module):
    """Option A: every `stride`-th pixel and `extra` channels of zeros, half on each side."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, hidden: Tensor) -> Tensor:
        """Images with fewer pixels and more channels."""
        kept = hidden[:, :, :: self.stride, :: self.stride]
        return F.pad(kept, (0, 0, 0, 0, self.before, self.after))


def resnet20(classes: Classes = 10) -> ResNet:
    """ResNet-20 for CIFAR, 269,722 parameters for 10 classes."""
    return ResNet(3, classes)


def resnet32(classes: Classes = 10) -> ResNet:
    """ResNet-32 for CIFAR, 464,154 parameters for 10 classes."""
    return ResNet(5, classes)


def resnet56(classes: Classes = 10) -> ResNet:
    """ResNet-56 for CIFAR, 853,018 parameters for 10 classes."""
    return ResNet(9, classes)


def resnet110(classes: Classes = 10) -> ResNet:
    """ResNet-110 for CIFAR, 1,727,962 parameters for 10 classes."""
    return ResNet(18, classes)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
