"""ResNets and ResNeXts for 32 x 32 images with the activation after the addition.

`ResNet` is the CIFAR network with parameter-free shortcuts (He et al. 2016, option A), with the
parameter names of the widely used checkpoints by akamaster; convolutions and the linear layer start
with `kaiming_normal_`. `BottleneckResNet` and `ResNeXt` (Xie et al. 2017, but narrower and with a
1 x 1 stem) are those of Hinge; convolutions start normal with variance 2 / (k k outputs). Batch
norms start with scale 1 and shift 0.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.models.init import Classes, ThreeWidths, init_for_slimming


class ResNet(nn.Module):
    """A stem, three stages of `blocks` basic blocks each, global average pooling, one linear layer.

    Depth is 6 * blocks + 2. `widths` are the channels of the three stages.
    """

    def __init__(
        self,
        blocks: int = 3,
        classes: int = 10,
        widths: ThreeWidths = (16, 32, 64),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.layer1 = _basic_stage(first, first, blocks, stride=1)
        self.layer2 = _basic_stage(first, second, blocks, stride=2)
        self.layer3 = _basic_stage(second, third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(third, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
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
        """Return the block's output; after pruning, inner and outer widths may differ."""
        branch = self.relu1(self.bn1(self.conv1(hidden)))
        return self.relu2(self.bn2(self.conv2(branch)) + self.shortcut(hidden))


class PadShortcut(nn.Module):
    """Take every `stride`-th pixel and add `extra` zero channels, half on each side (option A)."""

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, hidden: Tensor) -> Tensor:
        """Return feature maps with fewer pixels and more channels."""
        pixels = hidden[:, :, :: self.stride, :: self.stride]
        return F.pad(pixels, (0, 0, 0, 0, self.before, self.after))


def resnet20(classes: Classes = 10) -> ResNet:
    """Build the ResNet-20 for CIFAR, 269,722 parameters for 10 classes."""
    return ResNet(3, classes)


def resnet32(classes: Classes = 10) -> ResNet:
    """Build the ResNet-32 for CIFAR, 464,154 parameters for 10 classes."""
    return ResNet(5, classes)


def resnet56(classes: Classes = 10) -> ResNet:
    """Build the ResNet-56 for CIFAR, 853,018 parameters for 10 classes."""
    return ResNet(9, classes)


def resnet110(classes: Classes = 10) -> ResNet:
    """Build the ResNet-110 for CIFAR, 1,727,962 parameters for 10 classes."""
    return ResNet(18, classes)


def _basic_stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


class BottleneckResNet(nn.Module):
    """A stem, three stages of `blocks` bottlenecks each, global average pooling, one linear layer.

    Depth is 9 * blocks + 2. `widths` are the inner channels of the three stages, whose outputs
    have four times as many; `stem` is the number of channels before them.
    """

    def __init__(
        self,
        blocks: int = 18,
        classes: int = 10,
        widths: ThreeWidths = (16, 32, 64),
        stem: int = 16,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _bottleneck_stage(stem, first, 4 * first, blocks, stride=1)
        self.layer2 = _bottleneck_stage(4 * first, second, 4 * second, blocks, stride=2)
        self.layer3 = _bottleneck_stage(4 * second, third, 4 * third, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * third, classes)
        self.apply(partial(init_for_slimming, scale=1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.flatten(self.pool(hidden)))


class Bottleneck(nn.Module):
    """Convolutions 1 x 1, 3 x 3 and 1 x 1, each with a norm, and a shortcut around them.

    The 3 x 3 convolution has `inner` inputs and outputs, the `groups` and the stride. Where the
    shape changes, the shortcut is a 1 x 1 convolution with a norm (option C).
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
        """Return the block's output; after pruning, inner and outer widths may differ."""
        branch = self.relu1(self.bn1(self.conv1(hidden)))
        branch = self.relu2(self.bn2(self.conv2(branch)))
        return self.relu3(self.bn3(self.conv3(branch)) + self.shortcut(hidden))


def resnet164(classes: Classes = 10) -> BottleneckResNet:
    """Build the ResNet-164 of Hinge (Li et al. 2020), 1,704,154 parameters for 10 classes."""
    return BottleneckResNet(18, classes)


def _bottleneck_stage(
    inputs: int, inner: int, outputs: int, blocks: int, stride: int, groups: int = 1
) -> nn.Sequential:
    """Build a sequence of bottlenecks, the first of which changes the shape."""
    first = Bottleneck(inputs, inner, outputs, stride, groups)
    others = (Bottleneck(outputs, inner, outputs, 1, groups) for _ in range(blocks - 1))
    return nn.Sequential(first, *others)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class ResNeXt(nn.Module):
    """A 1 x 1 stem, three stages of `blocks` bottlenecks each, global pooling, one linear layer.

    Depth is 9 * blocks + 2. The 3 x 3 convolutions have `cardinality` groups of `width` channels in
    the first stage, 2 * `width` in the second and 4 * `width` in the third. A stage has twice as
    many outputs as inner channels.
    """

    def __init__(
        self,
        blocks: int = 18,
        classes: int = 10,
        cardinality: int = 32,
        width: int = 1,
        stem: int = 64,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = (cardinality * width * times for times in (1, 2, 4))
        self.conv1 = nn.Conv2d(in_channels, stem, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _bottleneck_stage(stem, first, 2 * first, blocks, 1, cardinality)
        self.layer2 = _bottleneck_stage(2 * first, second, 2 * second, blocks, 2, cardinality)
        self.layer3 = _bottleneck_stage(2 * second, third, 2 * third, blocks, 2, cardinality)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * third, classes)
        self.apply(partial(init_for_slimming, scale=1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.flatten(self.pool(hidden)))


def resnext20(classes: Classes = 10) -> ResNeXt:
    """Build the ResNeXt-20 of Hinge (Li et al. 2020), 211,850 parameters for 10 classes."""
    return ResNeXt(2, classes)


def resnext164(classes: Classes = 10) -> ResNeXt:
    """Build the ResNeXt-164 of Hinge (Li et al. 2020), 1,713,546 parameters for 10 classes."""
    return ResNeXt(18, classes)
