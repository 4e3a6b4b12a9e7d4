"""Patterns with channel selections: norms that can be narrowed while others read their channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import Body, Pattern, body
from prunekit.methods.slimming import ChannelSelector, InsertChannelSelectors


class PreActivated(nn.Module):
    """Norm, ReLU, convolution, twice, added to a shortcut that is fed with the raw input."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, outputs, 3, stride, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(y))) + self.shortcut(x)


class DenseLayer(nn.Module):
    """Norm, activation and a convolution, behind what was there before."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], 1)


def preactivated() -> nn.Module:
    """A stem, three pre-activation blocks of unequal width, norm, pooling, classes."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        PreActivated(6, 5, 8),
        PreActivated(8, 6, 10, 2),
        PreActivated(10, 5, 10),
        *(nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 4)),
    )


def dense() -> nn.Module:
    """A stem, dense layers, a transition, dense layers, norm, pooling, classes."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        *(DenseLayer(6, 4), DenseLayer(10, 4)),
        *(nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, 8, 1, bias=False), nn.AvgPool2d(2)),
        *(DenseLayer(8, 4), DenseLayer(12, 4)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


def selected(make: Callable[[], nn.Module]) -> nn.Module:
    """The network with all selections that belong into it."""
    model = make()
    InsertChannelSelectors.of(model, torch.zeros(1, 3, 8, 8)).apply(model)
    return model


def _beside(net: Body, x: Tensor) -> Tensor:
    return torch.cat([net.one(net.select(x)), x * net.other(net.select(x)).sigmoid()], 1)


SELECTED: dict[str, Pattern] = {
    "selections before pre-activation": Pattern(
        lambda: selected(preactivated),
        cut="1.bn1.select 1.conv1 2.bn1.select 2.conv1 3.bn1.select 3.conv1 4.select",
        note="being read through a channel selection",
        outputs="8",
    ),
    "selections in dense blocks": Pattern(
        lambda: selected(dense),
        cut="1.bn.select 2.bn.select 3.select 7.bn.select 8.bn.select 9.select",
        note="being read through a channel selection",
        outputs="13",
    ),
    "a selection that is read twice": body(
        _beside,
        between=12,
        select=lambda: ChannelSelector(8),
        one=lambda: nn.Conv2d(8, 4, 3, padding=1),
        other=lambda: nn.Conv2d(8, 8, 1),
        cut="select one last",
        note="being read through a channel selection",
    ),
    "a selection in front of a group norm": body(
        lambda net, x: F.elu(net.norm(net.select(x))) + net.one(x),
        select=lambda: ChannelSelector(8),
        norm=lambda: nn.GroupNorm(4, 8),
        one=lambda: nn.Conv2d(8, 8, 1),
        cut="select one last",
    ),
}
