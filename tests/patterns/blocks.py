"""Patterns of blocks: residuals, squeeze-excite, attention, several inputs and outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import Body, Pattern, body


class Residual(nn.Module):
    """The first convolution is added to the image itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(x + self.first(x))).mean((2, 3)))


class Stages(nn.Module):
    """Residual blocks; between two widths a projection, or the shortcut is padded with zeros."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.padded = padded
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.a, self.b = nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 1)
        self.c, self.d = nn.Conv2d(6, 7, 3, 2, 1), nn.Conv2d(7, 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.project = nn.Identity() if padded else nn.Conv2d(6, 12, 1, 2)
        self.last = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        y = self.norm(self.d(F.relu(self.c(x))))
        if self.padded:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        return self.head(self.last(F.relu(y + self.project(x))).mean((2, 3)))


def _excited(net: Body, x: Tensor) -> Tensor:
    return x * net.b(F.relu(net.a(net.pool(x)))).sigmoid()


def _excited_by_linear(net: Body, x: Tensor) -> Tensor:
    batch, channels, _, _ = x.size()
    scale = net.b(F.relu(net.a(net.pool(x).view(batch, channels)))).sigmoid()
    return x * scale.view(batch, channels, 1, 1).expand_as(x)


def _excited_by_mean(net: Body, x: Tensor) -> Tensor:
    scale = net.b(F.silu(net.a(x.mean((2, 3), keepdim=True))))
    return F.hardsigmoid(scale) * x


SQUEEZE = {
    "residual on the image": Pattern(Residual, cut="last", note="first"),
    "residual stages": Pattern(lambda: Stages(False), cut="first a b c d project last"),
    "residual padded with zeros": Pattern(lambda: Stages(True), cut="first a b c d last"),
    "residual chain": body(
        lambda net, x: x + net.b(F.relu(x + net.a(x))),
        a=lambda: nn.Conv2d(8, 8, 1),
        b=lambda: nn.Conv2d(8, 8, 1),
        cut="first a b last",
    ),
    "squeeze and excite": body(
        _excited,
        pool=lambda: nn.AdaptiveAvgPool2d(1),
        a=lambda: nn.Conv2d(8, 4, 1),
        b=lambda: nn.Conv2d(4, 8, 1),
        cut="first a last",
    ),
    "squeeze and excite, linear": body(
        _excited_by_linear,
        pool=lambda: nn.AdaptiveAvgPool2d(1),
        a=lambda: nn.Linear(8, 4),
        b=lambda: nn.Linear(4, 8),
        cut="first a last",
    ),
    "squeeze and excite, mean": body(
        _excited_by_mean,
        a=lambda: nn.Conv2d(8, 4, 1),
        b=lambda: nn.Conv2d(4, 8, 1),
        cut="first a last",
    ),
    "efficient channel attention": body(
        lambda net, x: x * net.layer(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None],
        layer=lambda: nn.Conv1d(1, 1, 3, padding=1),
        cut="last",
    ),
    "non-local": body(
        lambda net, x: _non_local(net, x),
        a=lambda: nn.Conv2d(8, 4, 1),
        b=lambda: nn.Conv2d(8, 4, 1),
        c=lambda: nn.Conv2d(8, 4, 1),
        d=lambda: nn.Conv2d(4, 8, 1),
        cut="last",
    ),
    "einsum": body(lambda net, x: torch.einsum("bchw,bcvw->bchv", x, x), cut="last"),
    "gram matrix": body(
        lambda net, x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x), cut="last"
    ),
    "channel gates in turn": body(
        lambda net, x: net.bottleneck(x) * net.gate(x).sigmoid() + x,
        bottleneck=lambda: nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1)),
        gate=lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)),
        cut="first bottleneck.0 last",
    ),
}


def _non_local(net: Body, x: Tensor) -> Tensor:
    query, key, value = (layer(x).flatten(2) for layer in (net.a, net.b, net.c))
    found = value @ (query.mT @ key).softmax(-1).mT
    return x + net.d(found.unflatten(2, (8, 8)))


class Transformer(nn.Module):
    """Patches, one encoder block with `attention`, norm, head."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 4, 8))
        self.norm = nn.LayerNorm(8)
        self.attention = attention
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        y = self.norm(x)
        if isinstance(self.attention, nn.MultiheadAttention):
            y, _ = self.attention(y, y, y, need_weights=False)
        else:
            y = self.attention(y)
        x = x + y
        x = x + self.b(F.gelu(self.a(self.norm(x))))
        return self.head(x.mean(1))


class Attention(nn.Module):
    """Queries, keys and values of one layer; the heads come from attributes."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.heads, self.width, self.fused = 2, 4, fused
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(query, key, value)
        else:
            x = (query @ key.transpose(-2, -1) * self.width**-0.5).softmax(-1) @ value
        return self.out(x.transpose(1, 2).reshape(batch, length, width))


class Separate(nn.Module):
    """Queries, keys and values of three layers; the sizes come from what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (2, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        x = F.scaled_dot_product_attention(query, key, value)
        return self.out(x.transpose(1, 2).flatten(2))


def _encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


ATTENTION = {
    name: Pattern(
        lambda make=make: Transformer(make()),
        cut="a",
        note="Norm",
        counters="fvcore torch" if name == "attention by hand" else "torch",
    )
    for name, make in {
        "attention of torch": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
        "attention by hand": lambda: Attention(False),
        "attention by function": lambda: Attention(True),
        "attention of three layers": Separate,
        "encoder layer of torch": _encoder,
    }.items()
}


class TwoImages(nn.Module):
    """Two inputs, an optional third, and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 8, 1)
        self.last = nn.Conv2d(8, 6, 1)
        self.head, self.other = nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> dict[str, Tensor]:
        x = F.relu(self.first(x) + self.b(y))
        x = self.last(x if scale is None else x * scale).mean((2, 3))
        return {"logits": self.head(x), "others": self.other(x)}


class Pyramid(nn.Module):
    """A backbone: every map it returns has fixed channels, what lies between has not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 7, 3, 2, 1)
        self.last, self.c = nn.Conv2d(7, 6, 3, padding=1), nn.Conv2d(6, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        one = self.a(F.relu(self.first(x)))
        two = self.c(F.relu(self.last(F.relu(one))))
        return one, [two, two.mean((2, 3))]


class Auxiliary(nn.Module):
    """A second head that only training calls, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.a, self.aux = nn.Conv2d(8, 5, 1), nn.Linear(5, 4)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        aux = self.aux(F.relu(self.a(x)).mean((2, 3))) if self.training else None
        x = self.head(self.last(x).mean((2, 3)))
        return x if aux is None else (x, aux)


NETWORKS = {
    "two images": Pattern(
        TwoImages, ((2, 3, 8, 8), (2, 1, 8, 8)), "first b last", outputs="head other"
    ),
    "pyramid": Pattern(Pyramid, outputs="a c"),
    "auxiliary head": Pattern(Auxiliary, cut="first a last", outputs="head aux"),
}

BLOCKS: dict[str, Pattern] = {**SQUEEZE, **ATTENTION, **NETWORKS}
