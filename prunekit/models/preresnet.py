"""ResNets with pre-activation for 32 x 32 images (He et al. 2016, "identity mappings").

`PreResNet` is the bottleneck network of network slimming: the shortcut takes the raw input of its
block and has no batch norm. The channel selectors of network slimming are not part of the network;
`prunekit.methods.slimming` inserts them. `WideResNet` is the network of Zagoruyko and Komodakis
2016 as in Hinge: convolutions have biases, the stride is that of the second one of a block, and the
last batch norm has momentum 0.9. Convolutions start normal with variance 2 / (k k outputs) and bias
0, batch norms with shift 0.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from prunekit.models.init import Classes, Scale, ThreeWidths, init_for_slimming


class PreResNet(nn.Module):
    """A stem, three stages of `blocks` bottlenecks each, norm, global pooling, one linear layer.

    Depth is 9 * blocks + 2. `widths` are the inner channels of the three stages, whose outputs
    have four times as many; `stem` is the number of channels before them, and `scale` the initial
    scale of all batch norms.
    """

    def __init__(
        self,
        blocks: int = 18,
        classes: int = 10,
        widths: ThreeWidths = (16, 32, 64),
        stem: int = 16,
        scale: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1, bias=False)
        self.layer1 = _bottleneck_stage(stem, first, blocks, stride=1)
        self.layer2 = _bottleneck_stage(4 * first, second, blocks, stride=2)
        self.layer3 = _bottleneck_stage(4 * second, third, blocks, stride=2)
        self.bn = nn.BatchNorm2d(4 * third)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * third, classes)
        self.apply(partial(init_for_slimming, scale=scale))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
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
        """Return the block's output; after pruning, inner and outer widths may differ."""
        branch = self.conv1(self.relu1(self.bn1(hidden)))
        branch = self.conv2(self.relu2(self.bn2(branch)))
        branch = self.conv3(self.relu3(self.bn3(branch)))
        return branch + self.shortcut(hidden)


def preresnet164(classes: Classes = 10, scale: Scale = 0.5) -> PreResNet:
    """Build the ResNet-164 of network slimming (Liu et al. 2017).

    It has 1,703,258 parameters for 10 classes and 247,646,720 multiply-adds. Batch norms start with
    `scale`, 0.5 in that paper.
    """
    return PreResNet(18, classes, scale=scale)


def _bottleneck_stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(blocks - 1)))


class WideResNet(nn.Module):
    """A stem, three stages of `blocks` pre-activation blocks each, norm, pooling, a linear layer.

    Depth is 6 * blocks + 4. The stages have 1, 2 and 4 times `stem * widen` channels.
    """

    def __init__(
        self,
        blocks: int = 2,
        widen: int = 10,
        classes: int = 100,
        stem: int = 16,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first, second, third = (stem * widen * times for times in (1, 2, 4))
        self.conv1 = nn.Conv2d(in_channels, stem, 3, padding=1)
        self.layer1 = _wide_stage(stem, first, blocks, stride=1)
        self.layer2 = _wide_stage(first, second, blocks, stride=2)
        self.layer3 = _wide_stage(second, third, blocks, stride=2)
        self.bn = nn.BatchNorm2d(third, momentum=0.9)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(third, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, height, width)."""
        hidden = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3 x 3 convolutions, and a shortcut from the raw input.

    Where the shape changes, the shortcut is a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the block's output; after pruning, inner and outer widths may differ."""
        branch = self.conv1(self.relu1(self.bn1(hidden)))
        return self.conv2(self.relu2(self.bn2(branch))) + self.shortcut(hidden)


def wrn16_10(classes: Classes = 100) -> WideResNet:
    """Build the WRN-16-10 of Hinge (Li et al. 2020), 17,179,940 parameters for 100 classes."""
    return WideResNet(2, 10, classes)


def _wide_stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(WideBlock(outputs, outputs) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    init_for_slimming(module, 1.0)
    if isinstance(module, nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
