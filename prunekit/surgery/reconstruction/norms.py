"""Give a batch norm the statistics of what it reads now, without changing what it puts out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class InputStatistics:
    """Mean and variance of every channel (dimension 1) over everything a batch norm reads."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: tuple[Tensor, Tensor] | None = None

    def add(self, x: Tensor) -> None:
        """Add one input."""
        x = x.detach().double().transpose(0, 1).flatten(1)
        sums = x.sum(1), (x**2).sum(1)
        before = self._sums
        self._sums = sums if before is None else (before[0] + sums[0], before[1] + sums[1])
        self.count += x.shape[1]

    @property
    def mean(self) -> Tensor:
        """The mean of every channel."""
        assert self._sums is not None
        return self._sums[0] / self.count

    @property
    def variance(self) -> Tensor:
        """The unbiased variance of every channel, as running variances are."""
        assert self._sums is not None
        spread = (self._sums[1] / self.count - self.mean**2).clamp_min(0)
        return spread * self.count / max(self.count - 1, 1)


def can_renormalise(norm: nn.Module) -> bool:
    """Return whether a batch norm has a scale and a shift that can make up for new statistics."""
    weight, bias = (getattr(norm, name, None) for name in ("weight", "bias"))
    return isinstance(weight, Tensor) and isinstance(bias, Tensor)


@torch.no_grad()
def renormalise(norm: Any, statistics: InputStatistics) -> None:
    """Set running statistics to those measured, and scale and shift so that outputs stay equal.

    Afterwards training mode agrees with evaluation mode. In evaluation, (x - m0) g / s0 + b equals
    (x - m1) g1 / s1 + b1 with g1 = g s1 / s0 and b1 = b + g (m1 - m0) / s0.
    """
    old_mean, old_deviation = norm.running_mean.double(), _deviation(norm, norm.running_var)
    mean, variance = statistics.mean, statistics.variance
    per_deviation = norm.weight.double() / old_deviation
    norm.bias.add_(per_deviation * (mean - old_mean))
    norm.weight.copy_(per_deviation * _deviation(norm, variance))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


def _deviation(norm: Any, variance: Tensor) -> Tensor:
    deviation: Tensor = (variance.double() + norm.eps).sqrt()
    return deviation
