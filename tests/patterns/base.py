"""What a pattern is, and the small network that most of them sit in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Pattern:
    """A way to tie channels together, in a network around it.

    `cut` are layers that must be able to lose output channels; every other convolution or linear
    layer either is cut, or is one of `outputs`, or a note names it. `note` is a word of the notes
    where channels stay; `refused` of the error where the network cannot be traced at all.
    `counters` know the multiply-adds: fvcore misses recurrent layers and attention by torch, both
    miss bilinear maps and count those of parametrisations, which prunekit does not.
    """

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 8, 8),)
    cut: str = "first last"
    note: str = ""
    refused: str = ""
    outputs: str = "head"
    counters: str = "fvcore torch"

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Random inputs, the same every time."""
        source = torch.Generator().manual_seed(1)
        return tuple(
            torch.rand(shape, generator=source, dtype=torch.float64) for shape in self.shapes
        )

    def network(self, seed: int = 0) -> nn.Module:
        """The network in double precision and train mode, with random numbers everywhere."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.build()
            randomise(net)
        return net.double()


def randomise(model: nn.Module) -> None:
    """Make every constant tensor random: zeros become normal, others spread around their value.

    A fresh norm, layer scale or zero-initialised head does nothing, so no test could see it.
    """
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point() and value.numel() and bool((value == value.max()).all()):
                if bool(value.max() == 0):
                    value.normal_(std=0.5)
                else:
                    value.mul_(torch.empty_like(value).uniform_(0.5, 1.5))


class Body(nn.Module):
    """Two convolutions with `middle` in between, then pooling and a linear layer.

    What else is given becomes an attribute: modules, parameters, buffers (tensors) or numbers.
    """

    def __init__(self, middle: Callable[[Body, Tensor], Tensor], between: int, **own: Any) -> None:
        super().__init__()
        self.middle = middle
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        for name, make in own.items():
            value = make()
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)
        self.last = nn.Conv2d(between, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(x)))
        x = self.middle(self, x)
        return self.head(self.last(x).mean((2, 3)))


def body(
    middle: Callable[[Any, Tensor], Tensor] = lambda net, x: net.layer(x),
    between: int = 8,
    *,
    cut: str = "first last",
    note: str = "",
    refused: str = "",
    counters: str = "fvcore torch",
    **own: Callable[[], Any],
) -> Pattern:
    """`middle` between two convolutions of 8 and 6 outputs; `own` make its layers."""
    build = partial(Body, middle, between, **own)
    return Pattern(build, cut=cut, note=note, refused=refused, counters=counters)


def chain(**layers: nn.Module) -> nn.Sequential:
    """Named layers in a row."""
    return nn.Sequential(OrderedDict(layers))


def numbers(*shape: int) -> Callable[[], nn.Parameter]:
    """Makes a bare parameter."""
    return lambda: nn.Parameter(torch.randn(shape))


def constants(*shape: int) -> Callable[[], Tensor]:
    """Makes a buffer."""
    return lambda: torch.rand(shape) + 0.5
