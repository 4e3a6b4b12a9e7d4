"""More blocks for random networks: patterns that move, split, share or scale channels."""

from __future__ import annotations

import torch
from patterns.moves import shuffle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from prunekit.methods.slimming import ChannelSelector


class Block(nn.Module):
    """A convolution to the new width and a norm, then what the block is about."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)
        self.make(outputs)

    def make(self, width: int) -> None:
        """More layers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.then(F.relu(self.bn(self.conv(x))))

    def then(self, x: Tensor) -> Tensor:
        return x


class Turned(Block):
    """Channels in reverse order, pixels shifted, joined with what was there."""

    def make(self, width: int) -> None:
        self.out = nn.Conv2d(2 * width, width, 1)

    def then(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x.flip(1), x.roll(1, 3)], 1))


class Repeated(Block):
    """Every channel twice, in two orders, and a concatenation with itself."""

    def make(self, width: int) -> None:
        self.out = nn.Conv2d(6 * width, width, 1, bias=False)

    def then(self, x: Tensor) -> Tensor:
        twice = x.repeat_interleave(2, dim=1), x.repeat(1, 2, 1, 1)
        return self.out(torch.cat([*twice, torch.cat((x, -x), 1)], dim=1))


class Scaled(Block):
    """Bare parameters and buffers of every shape that broadcasts over channels."""

    def make(self, width: int) -> None:
        self.scale = nn.Parameter(torch.randn(1, width, 1, 1))
        self.shift = nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.randn(width, 1, 1))
        self.gamma = nn.Parameter(torch.randn(width, 1, 1))
        self.inner = nn.Conv2d(width, width, 1)

    def then(self, x: Tensor) -> Tensor:
        x = (x - self.mean) * self.scale + self.shift.view(1, -1, 1, 1)
        return x + self.gamma * self.inner(x)


class Functional(Block):
    """A convolution and a norm without modules."""

    def make(self, width: int) -> None:
        self.weight = nn.Parameter(torch.randn(width, width, 3, 3) / 4)
        self.bias = nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.randn(width))
        self.register_buffer("var", torch.rand(width) + 0.5)

    def then(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, self.bias, padding=1)
        return F.relu(F.batch_norm(x, self.mean, self.var, training=self.training))


class Normed(Block):
    """A convolution with weight norm, then norms without batch."""

    def make(self, width: int) -> None:
        self.inner = parametrizations.weight_norm(nn.Conv2d(width, width, 1))
        self.norm = nn.InstanceNorm2d(width, affine=True)
        self.groups = nn.GroupNorm(2, width)

    def then(self, x: Tensor) -> Tensor:
        return F.relu(self.groups(self.norm(self.inner(x)) + x))


class ShuffleUnit(Block):
    """Half of the channels through a grouped and a depthwise convolution, then shuffled."""

    def make(self, width: int) -> None:
        half = width // 2
        self.a = nn.Conv2d(half, 2 * half, 1, groups=2)
        self.b = nn.Conv2d(2 * half, 2 * half, 3, padding=1, groups=2 * half)
        self.c = nn.Conv2d(2 * half, half, 1)

    def then(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        return shuffle(torch.cat((one, self.c(F.relu(self.b(self.a(two))))), 1), 2)


class Bottlenecks(Block):
    """Split, bottlenecks, concatenation of every step, as in YOLOv8."""

    def make(self, width: int) -> None:
        self.a, self.b = (nn.Conv2d(width // 2, width // 2, 3, padding=1) for _ in range(2))
        self.out = nn.Conv2d(2 * width, width, 1)

    def then(self, x: Tensor) -> Tensor:
        one, two = x.split(x.shape[1] // 2, 1)
        three = two + F.relu(self.a(two))
        return self.out(torch.cat([one, two, three, self.b(three)], 1))


class PixelShuffled(Block):
    """Channels become pixels and come back."""

    def make(self, width: int) -> None:
        self.wide = nn.Conv2d(width, 4 * width, 1)
        self.back = nn.Conv2d(4 * width, width, 1)

    def then(self, x: Tensor) -> Tensor:
        x = F.relu(F.pixel_shuffle(self.wide(x), 2))
        return self.back(F.pixel_unshuffle(x, 2))


class GroupedUp(Block):
    """A grouped transposed convolution, pooled."""

    def make(self, width: int) -> None:
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2, groups=2)
        self.act = nn.PReLU(width)

    def then(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.act(self.up(x)), 2)


class Tokens(Block):
    """A layer norm, a perceptron and attention over pixels, with shortcuts."""

    def make(self, width: int) -> None:
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.a, self.b = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def then(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        x = F.avg_pool2d(x, height).flatten(2).transpose(1, 2) + x.flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.b(F.gelu(self.a(self.norm(x))))
        return x.transpose(1, 2).unflatten(2, (height, -1))


class Gates(Block):
    """Halves that multiply, a frozen layer, and a constant number in the code."""

    def make(self, width: int) -> None:
        self.wide = nn.Conv2d(width, 2 * width, 1).requires_grad_(False)

    def then(self, x: Tensor) -> Tensor:
        one, two = self.wide(x).chunk(2, 1)
        return one * two.sigmoid() + 0.5


class Literal(Block):
    """Sizes written into the code."""

    def make(self, width: int) -> None:
        self.width = width
        self.inner = nn.Conv2d(width, width, 1)

    def then(self, x: Tensor) -> Tensor:
        one, two = self.inner(x).split([self.width // 4, self.width - self.width // 4], 1)
        return torch.cat([two, one], 1)


class PreActivated(nn.Module):
    """A norm whose channels the shortcut reads too, behind a channel selection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.select = ChannelSelector(inputs)
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.bn(self.select(x)))) + self.shortcut(x)


MORE: dict[str, type[nn.Module]] = {
    block.__name__: block
    for block in (
        *(Turned, Repeated, Scaled, Functional, Normed, ShuffleUnit, Bottlenecks, PixelShuffled),
        *(GroupedUp, Tokens, Gates, Literal, PreActivated),
    )
}
