"""LeNet-5 as pruning papers use it, for 28 x 28 images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from prunekit.models.init import Classes
from prunekit.schema import Count, Entries


class LeNet5(nn.Module):
    """Two unpadded 5 x 5 convolutions with max pooling and two linear layers, for 28 x 28 images.

    `widths` are the outputs of conv1, conv2 and fc1; 20-50-500 has 431,080 parameters and
    2,293,000 multiply-adds. `relu_convs=False` is the version of Caffe, whose only ReLU follows
    fc1. Weights have PyTorch's default initialisation.
    """

    def __init__(
        self,
        widths: Annotated[Sequence[Count], Entries(3), "outputs of conv1, conv2 and fc1"] = (
            20,
            50,
            500,
        ),
        classes: Classes = 10,
        relu_convs: Annotated[bool, "ReLUs after the convolutions too"] = True,
        in_channels: Annotated[Count, "channels of an image"] = 1,
    ) -> None:
        super().__init__()
        first, second, hidden = widths
        self.conv1 = nn.Conv2d(in_channels, first, 5)
        self.relu1 = nn.ReLU() if relu_convs else nn.Identity()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.relu2 = nn.ReLU() if relu_convs else nn.Identity()
        self.pool2 = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(second * 4 * 4, hidden)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (examples, classes) for images (examples, channels, 28, 28)."""
        hidden = self.pool1(self.relu1(self.conv1(images)))
        hidden = self.pool2(self.relu2(self.conv2(hidden)))
        return self.fc2(self.relu3(self.fc1(self.flatten(hidden))))
