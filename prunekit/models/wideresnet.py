"""Wide ResNets for 32 x 32 images (Zagoruyko and Komodakis 2016) as Hinge reports on them.

Convolutions have biases, the stride sits on the second one of a block, and the last batch norm has
momentum 0.9. Convolutions start normal with variance 2 / (k k outputs) and bias 0, batch norms with
scale 1 and shift 0.
"""

from __future__ import annotations

from torch import Tensor, nn

from prunekit.models.init import Classes, start_slimming


class WideResNet(nn.Module):
    """A stem, three stages of `blocks` pre-activation blocks each, norm, pooling, a linear layer.

    Depth is 6 * blocks + 4. The stages have `stem`, twice and four times as many channels, times
    `widen`.
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
        self.layer1 = _stage(stem, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.bn = nn.BatchNorm2d(third, momentum=0.9)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(third, classes)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3 x 3 convolutions, and a shortcut fed with the raw input.

    Where the shape changes the shortcut is a 1 x 1 convolution.
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
        """The block's output; its inner width may differ from its outer one after pruning."""
        branch = self.conv1(self.relu1(self.bn1(hidden)))
        return self.conv2(self.relu2(self.bn2(branch))) + self.shortcut(hidden)


def wrn16_10(classes: Classes = 100) -> WideResNet:
    """WRN-16-10 of Hinge (Li et al. 2020), 17,179,940 parameters for 100 classes."""
    return WideResNet(2, 10, classes)


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(WideBlock(outputs, outputs) for _ in range(blocks - 1)))


def _initialise(module: nn.Module) -> None:
    start_slimming(module, 1.0)
    if isinstance(module, nn.Conv2d):
        nn.init.zeros_(module.bias)
