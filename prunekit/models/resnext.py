"""ResNeXts for 32 x 32 images (Xie et al. 2017) as Hinge reports on them.

Narrower than those of the original paper, and with a 1 x 1 stem. Convolutions start normal with
variance 2 / (k k outputs), batch norms with scale 1 and shift 0.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from prunekit.models.bottleneck import stage
from prunekit.models.init import Classes, start_slimming


class ResNeXt(nn.Module):
    """A 1 x 1 stem, three stages of `blocks` bottlenecks each, global pooling, one linear layer.

    Depth is 9 * blocks + 2. The 3 x 3 convolutions have `cardinality` groups, of `width` channels
    each in the first stage, twice as many in the second and four times in the third; the outputs
    of a stage have twice the inner channels.
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
        self.layer1 = stage(stem, first, 2 * first, blocks, 1, cardinality)
        self.layer2 = stage(2 * first, second, 2 * second, blocks, 2, cardinality)
        self.layer3 = stage(2 * second, third, 2 * third, blocks, 2, cardinality)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(2 * third, classes)
        self.apply(partial(start_slimming, scale=1.0))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (examples, classes) of images (examples, channels, height, width)."""
        hidden = self.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        return self.linear(self.flatten(self.pool(hidden)))


def resnext20(classes: Classes = 10) -> ResNeXt:
    """ResNeXt-20 of Hinge (Li et al. 2020), 211,850 parameters for 10 classes."""
    return ResNeXt(2, classes)


def resnext164(classes: Classes = 10) -> ResNeXt:
    """ResNeXt-164 of Hinge (Li et al. 2020), 1,713,546 parameters for 10 classes."""
    return ResNeXt(18, classes)
