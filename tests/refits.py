"""Small networks that are cut and refitted in tests, and least squares of their own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import prunekit
from prunekit.graph.arguments import Arguments
from prunekit.surgery.reconstruction.base import Refitted
from prunekit.surgery.reconstruction.least_squares import LeastSquares, refit

EXACT = LeastSquares(ridge=1e-12)


def lstsq(x: Tensor, y: Tensor, old: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Solve the stacked system of one group directly, with a column of ones."""
    n, p = x.shape
    strength = ridge * (x - x.mean(0)).square().mean()
    rows = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1) / n**0.5
    prior = torch.cat([strength.sqrt() * torch.eye(p, dtype=x.dtype), torch.zeros(p, 1)], 1)
    targets = torch.cat([y / n**0.5, strength.sqrt() * old])
    solution = torch.linalg.lstsq(torch.cat([rows, prior]), targets).solution
    return solution[:-1], solution[-1]


def cut_and_refit(
    network: nn.Module, x: Tensor, settings: LeastSquares, **keep: float
) -> tuple[nn.Module, prunekit.Pruned, Refitted]:
    """Cut a network, and refit a copy of the result on the inputs in three batches."""
    pruned = prunekit.prune(network.eval(), x[:2], absorb=False, **keep)
    narrow = copy.deepcopy(pruned.model)
    chunks = [Arguments.of(chunk) for chunk in x.chunk(3)]
    removed = pruned.masks.removed
    return narrow, pruned, refit(network, narrow, pruned.graph, removed, lambda: chunks, settings)


class Block(nn.Module):
    """Two convolutions with norms around a shortcut whose channels are not removed."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.enter = nn.Conv2d(8, width, 3, padding=1, bias=False)
        self.norm0, self.norm1, self.norm2 = (nn.BatchNorm2d(n) for n in (width, 4, width))
        self.conv1 = nn.Conv2d(width, 4, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, width, 3, padding=1, bias=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stream(x).relu().mean((2, 3)))

    def stream(self, x: Tensor) -> Tensor:
        x = self.norm0(self.enter(self.stem(x).relu()))
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))


def trained(network: nn.Module, x: Tensor) -> nn.Module:
    """Give batch norms statistics of these inputs, and scales that differ."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None
    network.train()(x)
    return network.eval()
