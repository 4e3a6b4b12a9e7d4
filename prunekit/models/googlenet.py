"""GoogLeNet for 32 x 32 images as pruning papers use it: batch norms, no auxiliary classifiers.

Of the network of Szegedy et al. 2015 the modules are left; one 3 x 3 convolution at full resolution
is before them, and two 3 x 3 convolutions stand for each 5 x 5 one. Convolutions have biases.
Everything starts as PyTorch starts it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from string import ascii_lowercase

import torch
from torch import Tensor, nn

from prunekit.models.init import Classes

# of each module, in the order of Inception's arguments
_THIRD = ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64))
_FOURTH = (
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
)
_FIFTH = ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128))


class GoogLeNet(nn.Module):
    """A stem, stages of inception modules, global average pooling, a linear layer.

    `stages` holds the widths of every module, see `Inception`. The first stage works at full
    resolution, each later one at half of that before it. Modules are named a3, b3, a4, ...: the
    first stage is the third of the ImageNet network.
    """

    def __init__(
        self,
        classes: int = 10,
        stem: int = 192,
        stages: Sequence[Sequence[Sequence[int]]] = (_THIRD, _FOURTH, _FIFTH),
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.stem = _chain(_convolution("conv", in_channels, stem, 3))
        self.inception = nn.Sequential(_modules(stem, stages))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(_outputs(stages[-1][-1]), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        return self.linear(self.flatten(self.pool(self.inception(self.stem(images)))))


class Inception(nn.Module):
    """Four branches over the same input, their outputs side by side.

    1 x 1 to `one` channels; 1 x 1 to `reduce3`, then 3 x 3 to `three`; 1 x 1 to `reduce5`, then
    twice 3 x 3 to `five`; pooling, then 1 x 1 to `pooled`. A batch norm and a ReLU follow every
    convolution.
    """

    def __init__(
        self,
        inputs: int,
        one: int,
        reduce3: int,
        three: int,
        reduce5: int,
        five: int,
        pooled: int,
    ) -> None:
        super().__init__()
        self.branch1 = _chain(_convolution("conv", inputs, one, 1))
        self.branch3 = _chain(
            _convolution("reduce", inputs, reduce3, 1), _convolution("conv", reduce3, three, 3)
        )
        self.branch5 = _chain(
            _convolution("reduce", inputs, reduce5, 1),
            _convolution("conv1", reduce5, five, 3),
            _convolution("conv2", five, five, 3),
        )
        self.branch_pool = _chain(
            {"pool": nn.MaxPool2d(3, 1, padding=1)}, _convolution("conv", inputs, pooled, 1)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """The branches' channels, in the order above."""
        branches = (self.branch1, self.branch3, self.branch5, self.branch_pool)
        return torch.cat([branch(hidden) for branch in branches], dim=1)


def googlenet(classes: Classes = 10) -> GoogLeNet:
    """GoogLeNet for CIFAR, 6,166,250 parameters for 10 classes and 1,521,756,160 multiply-adds.

    The baseline of the structured-lasso tables: 6.17M, and 1531.98M with four for every entry that
    a batch norm puts out.
    """
    return GoogLeNet(classes)


def _convolution(name: str, inputs: int, outputs: int, kernel: int) -> dict[str, nn.Module]:
    return {
        name: nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2),
        f"{name}_bn": nn.BatchNorm2d(outputs),
        f"{name}_relu": nn.ReLU(),
    }


def _chain(*layers: dict[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(item for group in layers for item in group.items()))


def _modules(inputs: int, stages: Sequence[Sequence[Sequence[int]]]) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, modules in enumerate(stages, start=3):
        if stage > 3:
            layers[f"pool{stage}"] = nn.MaxPool2d(3, 2, padding=1)
        for letter, widths in zip(ascii_lowercase, modules, strict=False):
            layers[f"{letter}{stage}"] = Inception(inputs, *widths)
            inputs = _outputs(widths)
    return layers


def _outputs(widths: Sequence[int]) -> int:
    one, _, three, _, five, pooled = widths
    return one + three + five + pooled
