"""A small network around a piece of Python, and what must hold of it however it is traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import laws
import oracle
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import TraceError
from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def larger(x: Tensor) -> Tensor:
    """Random images of another size."""
    if x.ndim != 4:
        return x
    return torch.rand(*x.shape[:2], 12, 12, dtype=x.dtype)


class Net(nn.Module):
    """Two convolutions, and a linear layer; `forward` is what a test is about."""

    def __init__(self, between: int = 8, **own: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(between, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        for name, module in own.items():
            setattr(self, name, module)

    def start(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.first(x)))

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.last(x).mean((2, 3)))

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        return self.end(self.middle(self.start(x)))


def cut(net: nn.Module, example: Any = IMAGES) -> tuple[nn.Module, ChannelGraph]:
    """The network with half of every group gone, and its graph."""
    graph = ChannelGraph.trace(net, example)
    drop = graph.drop(laws.masks(graph, 0, 0.5, 2))
    narrow = laws.twin(net)
    Narrow.of(graph, drop).apply(narrow)
    return narrow, graph


def followed(
    net: nn.Module,
    example: Any = IMAGES,
    layers: str = "first last",
    resize: Callable[[Tensor], Tensor] | None = larger,
    modes: str = "eval train",
    weights: tuple[str, ...] = (),
) -> ChannelGraph:
    """Cut these layers, and be exact in all modes and at another size."""
    net = oracle.distinct(net).eval()
    narrow, graph = cut(net, example)
    for name in layers.split():
        assert oracle.share(net, narrow, name) <= 0.75, (name, graph.notes, graph.frozen)
    found = exact(net, narrow, example, resize, modes, weights)
    assert found.heard is not None and found.heard > 1e-6
    return graph


def exact(
    net: nn.Module,
    narrow: nn.Module,
    example: Any = IMAGES,
    resize: Callable[[Tensor], Tensor] | None = larger,
    modes: str = "eval train",
    weights: tuple[str, ...] = (),
) -> oracle.Gaps:
    """The narrow network does what the silenced one does."""
    found = oracle.gaps(net, narrow, example, resize, weights)
    assert found.eval is not None and (found.train is not None or "train" not in modes)
    assert resize is None or found.resized is not None
    assert found.worst < 1e-9, found
    return found


def frozen(net: nn.Module, note: str, layers: str = "first", example: Any = IMAGES) -> ChannelGraph:
    """These layers stay, a note says why, and what goes elsewhere is exact."""
    net = oracle.distinct(net).eval()
    narrow, graph = cut(net, example)
    for name in layers.split():
        assert oracle.share(net, narrow, name) == 1
    assert any(note in one for one in graph.notes), graph.notes
    assert all("\n" not in one for one in graph.notes)
    exact(net, narrow, example)
    return graph


def refused(net: nn.Module, message: str, example: Any = IMAGES) -> None:
    """An error in one line."""
    with pytest.raises(TraceError, match=message) as caught:
        ChannelGraph.trace(net.double(), example)
    assert "\n" not in str(caught.value)


def honest(net: nn.Module, example: Any = IMAGES, resize: Any = larger) -> ChannelGraph | None:
    """Followed and exact, or frozen and exact, or refused in one line: anything but wrong."""
    net = oracle.distinct(net).eval()
    try:
        narrow, graph = cut(net, example)
    except TraceError as error:
        assert "\n" not in str(error)
        return None
    exact(net, narrow, example, resize)
    assert oracle.share(net, narrow, "first") <= 0.75 or graph.notes
    return graph
