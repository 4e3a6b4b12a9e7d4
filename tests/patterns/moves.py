"""Patterns that move channels: shuffles, splits, concatenations, reshapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import Body, Pattern, body

REVERSED = list(range(7, -1, -1))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """As in ShuffleNet."""
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def _c2f(net: Body, x: Tensor) -> Tensor:
    """As in YOLOv8: every bottleneck's output joins the concatenation."""
    parts = list(net.expand(x).chunk(2, 1))
    for layer in net.blocks:
        parts.append(parts[-1] + F.relu(layer(parts[-1])))
    return torch.cat(parts, 1)


def _halves(net: Body, x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return torch.cat([net.a(x[:, :half]), x[:, half:]], 1)


def _gated(net: Body, x: Tensor) -> Tensor:
    one, two = net.layer(x).chunk(2, 1)
    return one * two.sigmoid()


def _shuffle_unit(net: Body, x: Tensor) -> Tensor:
    one, two = x.chunk(2, dim=1)
    return shuffle(torch.cat((one, F.relu(net.b(F.relu(net.a(two))))), 1), 2)


ORDER = {
    "flip": body(lambda net, x: x.flip(1)),
    "flip of pixels": body(lambda net, x: torch.flip(x, dims=(2, 3))),
    "roll": body(lambda net, x: x.roll(3, 1), note="roll"),
    "roll of pixels": body(lambda net, x: x.roll((1, 2), (2, 3))),
    "shuffle": body(lambda net, x: shuffle(x, 2)),
    "shuffle before groups": body(
        lambda net, x: net.layer(shuffle(x, 2)), layer=lambda: nn.Conv2d(8, 8, 1, groups=2)
    ),
    "shuffle between groups": body(
        lambda net, x: net.b(shuffle(net.a(x), 4)),
        a=lambda: nn.Conv2d(8, 16, 1, groups=4),
        b=lambda: nn.Conv2d(16, 8, 1, groups=4),
        cut="first a b last",
    ),
    "shuffle by function": body(lambda net, x: F.channel_shuffle(x, 2)),
    "shuffle unit": body(
        _shuffle_unit,
        a=lambda: nn.Conv2d(4, 6, 1),
        b=lambda: nn.Conv2d(6, 4, 3, padding=1),
        cut="first a b last",
    ),
    "pixel shuffle by function": body(lambda net, x: F.pixel_shuffle(x, 2), 2),
    "pixel unshuffle by function": body(lambda net, x: F.pixel_unshuffle(x, 2), 32),
    "pixel shuffle behind a layer": body(
        lambda net, x: F.relu(F.pixel_shuffle(net.layer(x), 2)),
        layer=lambda: nn.Conv2d(8, 20, 1),
        between=5,
        cut="first layer last",
    ),
    "space to depth by slices": body(
        lambda net, x: torch.cat(
            [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1
        ),
        32,
    ),
    "permutation in a buffer": body(
        lambda net, x: x[:, net.order], order=lambda: torch.tensor(REVERSED)
    ),
    "permutation by index select": body(
        lambda net, x: x.index_select(1, net.order),
        order=lambda: torch.tensor(REVERSED),
    ),
    "permutation by a list": body(lambda net, x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]], cut="last"),
    "gather": body(
        lambda net, x: torch.index_select(x, 1, net.order),
        order=lambda: torch.tensor([0, 0, 1, 7]),
        between=4,
    ),
}

PARTS = {
    "split of literal sizes": body(
        lambda net, x: torch.cat(x.split([3, 5], 1)[::-1], 1), cut="last", note="split"
    ),
    "split by a literal": body(
        lambda net, x: torch.cat([net.a(part) for part in torch.split(x, 4, 1)], 1),
        a=lambda: nn.Conv2d(4, 4, 1),
        cut="last",
        note="split",
    ),
    "split by attributes": body(
        lambda net, x: torch.cat([net.layer(x.split([net.c, net.d], 1)[0]), x[:, net.c :]], 1),
        layer=lambda: nn.Conv2d(3, 3, 1),
        c=lambda: 3,
        d=lambda: 5,
        cut="last",
    ),
    "computed split": body(lambda net, x: torch.cat(x.split(x.shape[1] // 2, 1), 1)),
    "chunk": body(lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "chunk of four": body(
        lambda net, x: net.layer(torch.chunk(x, 4, dim=1)[2]),
        layer=lambda: nn.Conv2d(2, 8, 1),
        cut="first layer last",
    ),
    "chunk into gates": body(
        _gated,
        layer=lambda: nn.Conv2d(8, 12, 1),
        between=6,
        cut="first layer last",
    ),
    "chunk, bottlenecks, concat": body(
        _c2f,
        16,
        expand=lambda: nn.Conv2d(8, 8, 1),
        blocks=lambda: nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)),
        cut="first expand last",
    ),
    "slice by literals": body(lambda net, x: torch.cat([x[:, :3], x[:, 3:]], 1), note="getitem"),
    "slice by halves": body(_halves, a=lambda: nn.Conv2d(4, 4, 1)),
    "every other channel": body(lambda net, x: x[:, ::2], 4),
    "narrow": body(lambda net, x: x.narrow(1, 2, 4), 4),
    "one channel": body(lambda net, x: x * torch.sigmoid(x[:, :1]), cut="last"),
    "one by one": body(lambda net, x: torch.stack(x.unbind(1)[::-1], 1), cut="last", note="unbind"),
    "tensor split": body(lambda net, x: torch.cat(x.tensor_split(2, 1)[::-1], 1), cut="last"),
}

CONCATS = {
    "concat of branches": body(
        lambda net, x: torch.cat((net.a(x), net.b(F.max_pool2d(x, 3, 1, 1)), x), dim=1),
        a=lambda: nn.Conv2d(8, 3, 1),
        b=lambda: nn.Conv2d(8, 5, 3, padding=1),
        between=16,
        cut="first a b last",
    ),
    "concat nested": body(
        lambda net, x: torch.cat([x, torch.cat([net.a(x), torch.cat([x, -x], 1)], 1)], 1),
        a=lambda: nn.Conv2d(8, 4, 1),
        between=28,
        cut="first a last",
    ),
    "concat with itself": body(lambda net, x: torch.cat([x, x], 1), 16),
    "concat with the image": body(
        lambda net, x: torch.cat([x, F.avg_pool2d(x, 3, 1, 1), x[:, :, :, :1].expand_as(x)], 1), 24
    ),
    "concat, then residual": body(
        lambda net, x: x + torch.cat([net.a(x), net.b(x)], 1),
        a=lambda: nn.Conv2d(8, 3, 1),
        b=lambda: nn.Conv2d(8, 5, 1),
    ),
    "concat, norm, groups": body(
        lambda net, x: net.layer(F.relu(net.norm(torch.cat([x, net.a(x)], 1)))),
        a=lambda: nn.Conv2d(8, 4, 1),
        norm=lambda: nn.BatchNorm2d(12),
        layer=lambda: nn.Conv2d(12, 8, 1, groups=2),
        cut="layer last",
    ),
    "dense connection": body(
        lambda net, x: torch.cat([x, c := net.a(x), net.b(torch.cat([x, c], 1))], 1),
        a=lambda: nn.Conv2d(8, 4, 1),
        b=lambda: nn.Conv2d(12, 4, 1),
        between=16,
        cut="first a b last",
    ),
    "concat along pixels": body(lambda net, x: torch.cat([x, x.tanh()], dim=3)),
    "concat along the batch": body(
        lambda net, x: torch.cat([x, -x], 0).unflatten(0, (2, -1)).sum(0)
    ),
    "concat of gates": body(
        lambda net, x: net.gate * torch.cat([x, net.a(x)], 1),
        a=lambda: nn.Conv2d(8, 4, 1),
        gate=lambda: nn.Parameter(torch.randn(1, 12, 1, 1)),
        between=12,
        cut="last",
    ),
    "stack": body(lambda net, x: torch.stack([x, x.tanh()]).sum(0)),
    "stack behind channels": body(lambda net, x: torch.stack([x, x.tanh()], 2).flatten(1, 2), 16),
    "unbind of pixels": body(lambda net, x: torch.stack(x.unbind(3)[::-1], 3)),
}


class Flattened(nn.Module):
    """A linear layer on the flattened map, by `flat`."""

    def __init__(self, flat: object, width: int = 6 * 16) -> None:
        super().__init__()
        self.flat = flat
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.last = nn.Conv2d(8, 6, 3, padding=1)
        self.hidden = nn.Linear(width, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(F.relu(self.first(x)))
        return self.head(F.relu(self.hidden(self.flat(x))))


def flattened(flat: object, cut: str = "first last hidden", note: str = "") -> Pattern:
    """A pattern around `flat`."""
    return Pattern(lambda: Flattened(flat), cut=cut, note=note)


RESHAPES = {
    "flatten": flattened(lambda x: torch.flatten(x, 1)),
    "flatten in two steps": flattened(lambda x: x.flatten(2).flatten(1)),
    "reshape by size": flattened(lambda x: x.reshape(x.size(0), -1)),
    "view by shape": flattened(lambda x: x.view(x.shape[0], x.shape[1] * 16)),
    "view of literal sizes": flattened(
        lambda x: x.view(-1, 6 * 4 * 4), cut="first hidden", note="view"
    ),
    "flatten of channels last": flattened(lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    "squeeze": Pattern(
        lambda: Flattened(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2), 6),
        cut="first last hidden",
    ),
    "unflatten": body(lambda net, x: x.unflatten(1, (2, -1)).flatten(1, 2)),
    "view of literal channels": body(
        lambda net, x: x.view(-1, 8, 64).view(-1, 8, 8, 8), cut="last", note="view"
    ),
    "view by an attribute": body(
        lambda net, x: x.view(-1, net.c, 64).relu().view(-1, net.c, 8, 8),
        c=lambda: 8,
        cut="last",
        note="view",
    ),
    "repeat": body(lambda net, x: x.repeat(1, 2, 1, 1), 16),
    "repeat interleave": body(lambda net, x: x.repeat_interleave(2, dim=1), 16),
    "repeat by function": body(lambda net, x: torch.repeat_interleave(x, 3, 1), 24),
    "tile": body(lambda net, x: torch.tile(x, (1, 2, 1, 1)), 16, cut="last"),
    "expand": body(lambda net, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) * x),
    "expand over channels": body(
        lambda net, x: x.mean(1, keepdim=True).expand(-1, 8, -1, -1), cut="last"
    ),
    "channels last": body(lambda net, x: F.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "linear on channels last": body(
        lambda net, x: net.b(F.gelu(net.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        a=lambda: nn.Linear(8, 16),
        b=lambda: nn.Linear(16, 8),
        cut="first a b last",
    ),
    "movedim": body(
        lambda net, x: net.a(x.movedim(1, -1)).movedim(-1, 1), a=lambda: nn.Linear(8, 8)
    ),
    "tokens": body(
        lambda net, x: net.a(x.flatten(2).transpose(1, 2)).mT.reshape(x.shape[0], -1, 8, 8),
        a=lambda: nn.Linear(8, 8),
        cut="first a last",
    ),
    "interpolate": body(lambda net, x: F.interpolate(x, scale_factor=2.0)),
    "interpolate to a size": body(lambda net, x: x + F.interpolate(x[:, :, ::2, ::2], x.shape[2:])),
    "pad with a number": body(lambda net, x: F.pad(x, (1, 1, 1, 1), value=2.0)),
    "pad by reflection": body(lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "pad of channels": body(lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 1)), 11),
    "pad of channels by ones": body(
        lambda net, x: F.pad(x, (0, 0, 0, 0, 2, 1), value=1.0), 11, cut="last"
    ),
}

MOVES: dict[str, Pattern] = {**ORDER, **PARTS, **CONCATS, **RESHAPES}
