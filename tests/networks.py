"""Random convolutional networks: blocks that differ in how they tie channels together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from blocks import MORE
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.graph import ChannelGraph


class Plain(nn.Module):
    """Convolution, batch norm, activation; the width may change."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bare(nn.Module):
    """Convolution without bias, per-channel PReLU, and padding of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.conv = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.act = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(self.pad(x)))


class Residual(nn.Module):
    """A shortcut; a 1x1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(inputs, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn(self.second(self.first(x)))
        out += self.shortcut(x)
        return F.relu(out)


class PaddedResidual(nn.Module):
    """A shortcut without parameters: fewer pixels, more channels of zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.extra = max(outputs - inputs, 0)
        self.conv = nn.Conv2d(inputs, inputs + self.extra, 3, stride=2, padding=1)
        self.out = Plain(inputs + self.extra, outputs)

    def forward(self, x: Tensor) -> Tensor:
        before = self.extra // 2
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before))
        return self.out(F.relu(self.conv(x) + shortcut))


class Dense(nn.Module):
    """The input goes on beside what is new."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.out = nn.Conv2d(inputs + outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x, self.conv(F.relu(self.bn(x)))], 1))


class Branches(nn.Module):
    """Parallel branches of unequal width, concatenated."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs - outputs // 4, 1)
        self.three = nn.Conv2d(inputs, outputs // 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return F.relu(self.bn(torch.cat((self.one(x), self.three(pooled)), dim=1)))


class Grouped(nn.Module):
    """A grouped convolution behind a plain one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(inputs, outputs)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(self.first(x)))


class Depthwise(nn.Module):
    """Expansion, depthwise convolution that doubles the channels, projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(inputs, outputs, 1)
        self.conv = nn.Conv2d(outputs, 2 * outputs, 3, padding=1, groups=outputs)
        self.bn = nn.BatchNorm2d(2 * outputs)
        self.project = nn.Conv2d(2 * outputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu6(self.bn(self.conv(self.expand(x)))))


class Excited(nn.Module):
    """Squeeze and excite: channels scaled by what all channels say."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Plain(inputs, outputs)
        self.down = nn.Linear(outputs, outputs // 2)
        self.up = nn.Linear(outputs // 2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = self.up(F.relu(self.down(x.mean([2, 3]))))
        return x * torch.sigmoid(scale).unsqueeze(-1).unsqueeze(-1)


class Twice(nn.Module):
    """One convolution called two times, and another that shares its weight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(inputs, outputs)
        self.shared = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.tied = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.tied.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.tied(self.shared(F.relu(self.shared(self.first(x))))))


class Chunked(nn.Module):
    """Half of the channels go through a convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(inputs, outputs)
        self.conv = nn.Conv2d(outputs // 2, outputs // 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return torch.cat([F.relu(self.conv(a)), b], 1)


class Shuffled(nn.Module):
    """Channels of two groups take turns."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = Plain(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return x.reshape(batch, channels, height, width)


class Gated(nn.Module):
    """A map with one channel scales all others."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Plain(inputs, outputs)
        self.gate = nn.Conv2d(outputs, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.gate(x))


class Upsampled(nn.Module):
    """Down by pooling, up by a transposed convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.avg_pool2d(x, 2, ceil_mode=True))


BLOCKS = {
    block.__name__: block
    for block in (Plain, Bare, Residual, PaddedResidual, Dense, Branches, Grouped, Depthwise)
} | {block.__name__: block for block in (Excited, Twice, Chunked, Shuffled, Gated, Upsampled)}


class Network(nn.Module):
    """Blocks in a row, then one or two linear layers; all numbers are random."""

    def __init__(
        self, blocks: Sequence[Sequence[str | int]], pooled: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width, layers = 3, []
        for name, outputs in blocks:
            layers.append((BLOCKS | MORE)[name](width, outputs))
            width = outputs
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1 if pooled else 2)
        self.hidden = nn.Linear(width * (1 if pooled else 4), 6)
        self.head = nn.Linear(6, 3)
        self.example = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        randomise(self)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.pool(self.blocks(x)), 1)
        return self.head(F.relu(self.hidden(x)))


def randomise(model: nn.Module) -> None:
    """Give batch norms numbers that a test can see; a fresh one does nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -1.0, 1.0)


def settings(kinds: Iterable[str] = BLOCKS) -> st.SearchStrategy[dict]:
    """Arguments of `Network`, with blocks of these kinds."""
    block = st.tuples(st.sampled_from(sorted(kinds)), st.sampled_from([4, 8, 12]))
    return st.fixed_dictionaries(
        {
            "blocks": st.lists(block.map(list), min_size=1, max_size=5),
            "pooled": st.booleans(),
            "seed": st.integers(0, 9),
        }
    )


def networks(kinds: Iterable[str] = BLOCKS) -> st.SearchStrategy[Network]:
    """Random networks in eval mode, of doubles, with an `example` to run them on."""
    return settings(kinds).map(lambda chosen: Network(**chosen))


@st.composite
def masks(draw: st.DrawFn, graph: ChannelGraph, least: int = 1) -> dict[str, Tensor]:
    """For every group of a graph what to remove; at least `least` units of each stay."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    fraction = draw(st.sampled_from([0.1, 0.5, 0.9]))
    chosen = {}
    for group in graph.groups:
        order = torch.rand(len(group.units), generator=generator)
        chosen[group.name] = order < fraction
        chosen[group.name][order.argsort(descending=True)[:least]] = False
    for layer in graph.emptied(graph.drop(chosen)):
        for group in graph.groups:
            chosen[group.name] &= ~torch.isin(group.units, graph.outs[layer])
            chosen[group.name] &= ~torch.isin(group.units, graph.ins[layer])
    return chosen


def classifier(seed: int = 0, classes: int = 3) -> nn.Module:
    """A small network with batch norm and dropout, for grey images of 8 x 8."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(256, classes),
    )
