"""VGG networks for 32 x 32 images: conv-BN-ReLU stacks; one entry per published network.

Convolutions start normal with variance 2 / (9 outputs), linear layers normal with std 0.01 and
zero bias, batch norms at `scale` and shift 0.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from prunekit.models.init import Classes, Scale, start_slimming

_VGG16 = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
_VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class VGG(nn.Module):
    """Blocks of 3 x 3 convolutions, each block followed by pooling, then linear layers.

    `blocks` holds the widths of every block: images of 2**blocks pixels shrink to one pixel, so
    five blocks take 32 x 32. The last block ends in average pooling where `average` is set, else
    in max pooling like the others. `hidden` are the widths of linear layers before the last one,
    `scale` is where the weights of all batch norms start.
    """

    def __init__(
        self,
        blocks: Sequence[Sequence[int]] = _VGG16,
        classes: int = 10,
        hidden: Sequence[int] = (),
        average: bool = False,
        conv_bias: bool = False,
        scale: float = 1.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(_features(blocks, in_channels, average, conv_bias))
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(_classifier((blocks[-1][-1], *hidden), classes))
        self.apply(partial(_initialise, scale=scale))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        return self.classifier(self.flatten(self.features(images)))


def vgg16(classes: Classes = 10) -> VGG:
    """VGG-16 with one linear layer, 14,724,042 parameters for 10 classes."""
    return VGG(_VGG16, classes)


def vgg16_two_linear(classes: Classes = 10) -> VGG:
    """VGG-16 with a hidden linear layer of 512, 14,986,698 parameters for 10 classes.

    The baseline of the structured-lasso tables (14.98M); no batch norm between the linear layers.
    """
    return VGG(_VGG16, classes, hidden=(512,))


def vgg16_three_linear(classes: Classes = 10) -> VGG:
    """VGG-16 with two hidden linear layers of 512 and conv biases, 15,253,578 parameters.

    The baseline of the Hinge tables (15,253.6 k).
    """
    return VGG(_VGG16, classes, hidden=(512, 512), conv_bias=True)


def vgg19(classes: Classes = 10, scale: Scale = 0.5) -> VGG:
    """VGG-19 of network slimming (Liu et al. 2017), 20,035,018 parameters for 10 classes.

    16 convolutions, four max poolings, one average pooling, one linear layer: 398,136,320
    multiply-adds. Batch norms start at `scale`, 0.5 in that paper.
    """
    return VGG(_VGG19, classes, average=True, scale=scale)


def _features(
    blocks: Sequence[Sequence[int]], channels: int, average: bool, conv_bias: bool
) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, widths in enumerate(blocks, start=1):
        for index, width in enumerate(widths, start=1):
            layers[f"conv{block}_{index}"] = nn.Conv2d(
                channels, width, 3, padding=1, bias=conv_bias
            )
            layers[f"bn{block}_{index}"] = nn.BatchNorm2d(width)
            layers[f"relu{block}_{index}"] = nn.ReLU()
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
    if average:
        layers[f"pool{len(blocks)}"] = nn.AvgPool2d(2)
    return layers


def _classifier(widths: Sequence[int], classes: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers[f"fc{index}"] = nn.Linear(inputs, outputs)
        layers[f"relu{index}"] = nn.ReLU()
    layers[f"fc{len(widths)}"] = nn.Linear(widths[-1], classes)
    return layers


def _initialise(module: nn.Module, scale: float) -> None:
    start_slimming(module, scale)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
