"""Patterns of tensors: bare parameters, buffers, functional calls, shared weights, arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patterns.base import Body, Pattern, body, constants, numbers


def _tied(net: Body, x: Tensor) -> Tensor:
    return F.relu(net.b(F.relu(net.a(x))))


class Tied(nn.Module):
    """Two convolutions with one weight, or a linear layer and its transpose."""

    def __init__(self, turned: bool = False) -> None:
        super().__init__()
        self.turned = turned
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Linear(8, 5) if turned else nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        if not turned:
            self.b.weight = self.a.weight
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.turned:
            hidden = F.relu(self.a(x.permute(0, 2, 3, 1)))
            x = self.b(F.linear(hidden, self.a.weight.t()).permute(0, 3, 1, 2))
        else:
            x = self.b(F.relu(self.a(x)))
        return self.head(self.last(F.relu(x)).mean((2, 3)))


class TiedHead(nn.Module):
    """The head has the weight of an earlier layer, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8, bias=False)
        self.last = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4, bias=False)
        self.tied = nn.Linear(4, 8)
        self.tied.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.first(x) + self.tied(-x)))))


SHARED = {
    "tensor used twice": body(
        lambda net, x: net.a(x) + net.b(x).tanh(),
        a=lambda: nn.Conv2d(8, 8, 1),
        b=lambda: nn.Conv2d(8, 8, 1),
        cut="first a b last",
    ),
    "layer called twice": body(
        lambda net, x: net.layer(F.relu(net.layer(x))), layer=lambda: nn.Conv2d(8, 8, 3, padding=1)
    ),
    "layer on two branches": body(
        lambda net, x: torch.cat([net.layer(x), net.layer(F.max_pool2d(x, 3, 1, 1))], 1),
        16,
        layer=lambda: nn.Conv2d(8, 8, 3, padding=1),
        cut="first layer last",
    ),
    "norm called twice": body(
        lambda net, x: net.norm(net.a(F.relu(net.norm(x)))),
        norm=lambda: nn.BatchNorm2d(8),
        a=lambda: nn.Conv2d(8, 8, 1),
    ),
    "tied convolutions": Pattern(Tied, cut="first a b last"),
    "tied to its transpose": Pattern(lambda: Tied(True), cut="last"),
    "tied linear layers": Pattern(TiedHead, ((5, 4),)),
    "weight also used by hand": body(
        lambda net, x: F.conv2d(net.a(x), net.a.weight), a=lambda: nn.Conv2d(8, 8, 1), cut="last"
    ),
    "scales also used by hand": body(
        lambda net, x: x * net.bn.weight.view(1, -1, 1, 1), cut="last"
    ),
}

PARAMETERS = {
    "scale of channels": body(lambda net, x: x * net.scale, scale=numbers(1, 8, 1, 1)),
    "scale without batch dimension": body(lambda net, x: net.scale * x, scale=numbers(8, 1, 1)),
    "scale seen as a map": body(lambda net, x: x * net.scale.view(1, -1, 1, 1), scale=numbers(8)),
    "scale by indexing": body(lambda net, x: x + net.shift[None, :, None, None], shift=numbers(8)),
    "scale of literal size": body(
        lambda net, x: x * net.scale.view(1, 8, 1, 1), scale=numbers(8), cut="last"
    ),
    "layer scale": body(
        lambda net, x: x + net.gamma * net.layer(x),
        gamma=numbers(8, 1, 1),
        layer=lambda: nn.Conv2d(8, 8, 1),
    ),
    "scalar": body(lambda net, x: x * net.scale + net.shift, scale=numbers(), shift=numbers(1)),
    "positions": body(lambda net, x: x + net.positions, positions=numbers(1, 8, 8, 8)),
    "positions without channels": body(
        lambda net, x: x + net.positions, positions=numbers(1, 1, 8, 8)
    ),
    "positions of tokens": body(
        lambda net, x: (x.flatten(2).mT + net.positions).mT.unflatten(2, (8, 8)),
        positions=numbers(1, 64, 8),
    ),
    "class token": body(
        lambda net, x: (
            torch.cat([net.token.expand(x.shape[0], -1, -1), x.flatten(2).mT], 1)
            .mT[:, :, 1:]
            .unflatten(2, (8, 8))
        ),
        token=numbers(1, 1, 8),
        cut="last",
    ),
    "buffer of channels": body(lambda net, x: x * net.scale, scale=constants(1, 8, 1, 1)),
    "normalised by buffers": body(
        lambda net, x: (x - net.mean) / net.std,
        mean=constants(1, 8, 1, 1),
        std=constants(1, 8, 1, 1),
    ),
    "image normalised": body(
        lambda net, x: net.layer(x) - net.mean.mean(),
        mean=constants(3, 1, 1),
        layer=lambda: nn.Conv2d(8, 8, 1),
        cut="first layer last",
    ),
    "constant in the code": body(
        lambda net, x: x * torch.arange(8.0, dtype=x.dtype).view(1, 8, 1, 1), cut="last"
    ),
    "gate behind a concat": body(
        lambda net, x: torch.cat([x, -x], 1) * net.gate.sigmoid(), 16, gate=numbers(1, 16, 1, 1)
    ),
    "convolution by function": body(
        lambda net, x: F.conv2d(x, net.weight, net.bias, padding=1),
        weight=numbers(8, 8, 3, 3),
        bias=numbers(8),
        cut="first last",
    ),
    "transposed convolution by function": body(
        lambda net, x: F.conv_transpose2d(x, net.weight, stride=2),
        weight=numbers(8, 8, 2, 2),
        cut="last",
    ),
    "depthwise convolution by function": body(
        lambda net, x: F.conv2d(x, net.weight, groups=8), weight=numbers(8, 1, 3, 3), cut="last"
    ),
    "blur by a buffer": body(
        lambda net, x: F.conv2d(x, net.kernel.expand(x.shape[1], -1, -1, -1), groups=x.shape[1]),
        kernel=constants(1, 1, 3, 3),
        cut="last",
    ),
    "linear layer by function": body(
        lambda net, x: F.linear(x.permute(0, 2, 3, 1), net.weight).permute(0, 3, 1, 2),
        weight=numbers(8, 8),
    ),
    "matrix product by hand": body(
        lambda net, x: (x.permute(0, 2, 3, 1) @ net.weight + net.bias).permute(0, 3, 1, 2),
        weight=numbers(8, 8),
        bias=numbers(8),
        cut="last",
        counters="torch",
    ),
    "norm by function": body(
        lambda net, x: F.batch_norm(x, net.mean, net.var, net.weight, net.bias, net.training),
        mean=constants(8),
        var=constants(8),
        weight=numbers(8),
        bias=numbers(8),
    ),
    "layer norm by function": body(
        lambda net, x: F.layer_norm(x.movedim(1, 3), (8,), net.weight).movedim(3, 1),
        weight=numbers(8),
        cut="last",
        note="norm",
    ),
    "instance norm by function": body(
        lambda net, x: F.instance_norm(x, weight=net.weight), weight=numbers(8)
    ),
    "group norm by function": body(
        lambda net, x: F.group_norm(x, 2, net.weight), weight=numbers(8), cut="last", note="norm"
    ),
    "prelu by function": body(lambda net, x: F.prelu(x - 0.5, net.weight), weight=numbers(8)),
    "parameter list": body(
        lambda net, x: x * net.scales[0] + net.scales[1],
        scales=lambda: nn.ParameterList([numbers(1, 8, 1, 1)(), numbers(8, 1, 1)()]),
    ),
}

ARITHMETIC = {
    "one-channel gate": body(
        lambda net, x: x * torch.sigmoid(net.gate(x)), gate=lambda: nn.Conv2d(8, 1, 1)
    ),
    "scalar gate": body(
        lambda net, x: x * net.gate(x.mean((2, 3)))[:, :, None, None], gate=lambda: nn.Linear(8, 1)
    ),
    "detached": body(lambda net, x: x * x.detach().sigmoid()),
    "without gradient": body(lambda net, x: _without_gradient(net, x), layer=lambda: nn.ReLU()),
    "in place": body(lambda net, x: (-x).mul_(2).add_(1).relu_()),
    "in place, added": body(lambda net, x: _added(x, net.a(x)), a=lambda: nn.Conv2d(8, 8, 1)),
    "in place, by index": body(lambda net, x: _zeroed(x), cut="last"),
    "mean of channels": body(lambda net, x: x - x.mean(1, keepdim=True), cut="last", note="mean"),
    "maximum of channels": body(lambda net, x: x * x.amax(1, keepdim=True), cut="last"),
    "spatial attention": body(
        lambda net, x: (
            x
            * net.gate(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)).sigmoid()
        ),
        gate=lambda: nn.Conv2d(2, 1, 3, padding=1),
        cut="last",
    ),
    "softmax over channels": body(lambda net, x: x.softmax(1), cut="last", note="softmax"),
    "softmax over pixels": body(lambda net, x: x * x.flatten(2).softmax(-1).view_as(x)),
    "normalised over channels": body(lambda net, x: F.normalize(x, dim=1), cut="last"),
    "normalised over pixels": body(lambda net, x: x / (1 + x.norm(2, (2, 3), keepdim=True))),
    "running sum": body(lambda net, x: x.cumsum(dim=1), cut="last", note="cumsum"),
    "sum over channels": body(lambda net, x: x + x.sum(1, keepdim=True), cut="last"),
    "channel number": body(lambda net, x: x / x.shape[1], cut="last"),
    "maximum of pairs": body(lambda net, x: x.view(x.shape[0], -1, 2, 8, 8).amax(2), 4, cut="last"),
    "maxout": body(
        lambda net, x: torch.maximum(*net.layer(x).chunk(2, 1)),
        layer=lambda: nn.Conv2d(8, 16, 1),
        cut="first layer last",
    ),
    "gated linear unit by function": body(
        lambda net, x: F.glu(net.layer(x), 1), layer=lambda: nn.Conv2d(8, 16, 1), cut="first last"
    ),
    "where": body(lambda net, x: torch.where(x > 0.5, x, -x)),
    "constant map": body(lambda net, x: x + torch.ones(1, 1, 8, 8)),
    "data-dependent branch": body(
        lambda net, x: x if x.sum() > 0 else -x, cut="last", note="reads values"
    ),
}


def _without_gradient(net: Body, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = net.layer(x).mean((2, 3), keepdim=True)
    return x * scale


def _added(x: Tensor, y: Tensor) -> Tensor:
    y += x
    return F.relu_(y)


def _zeroed(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :2] = 0
    return x


VALUES: dict[str, Pattern] = {**SHARED, **PARAMETERS, **ARITHMETIC}
