"""Scales that make the scores of different groups comparable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


class Normalise(ABC):
    """Makes the scores of different groups comparable before one threshold cuts them all."""

    @abstractmethod
    def scale(self, score: Tensor) -> Tensor:
        """What the scores of one group are divided by, a positive scalar tensor."""

    def __call__(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores of every group over its scale; a group of zeros stays as it is."""
        return {name: s / self.scale(s) if s.any() else s for name, s in scores.items()}


@dataclass(frozen=True)
class MaxNorm(Normalise):
    """Divides by the group's largest absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The largest absolute score."""
        return score.abs().max()


@dataclass(frozen=True)
class MeanNorm(Normalise):
    """Divides by the group's mean absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The mean absolute score."""
        return score.abs().mean()


def relative_ranks(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The place of every unit in its group as a share, near 1 for the best and 0 for the worst.

    One threshold over such scores keeps the same share of every group. Of equal scores the earlier
    is better.
    """
    return {name: _shares(score) for name, score in scores.items()}


def _shares(score: Tensor) -> Tensor:
    rank = score.argsort(descending=True, stable=True).argsort()
    return 1 - (rank.double() + 0.5) / len(score)
