"""Scales that make the scores of different groups comparable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor


class Normalise(ABC):
    """Makes the scores of different groups comparable before one threshold cuts them all."""

    @abstractmethod
    def scale(self, score: Tensor) -> Tensor:
        """What the scores of one group are divided by, a positive scalar tensor."""

    def __call__(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The scores of every group over its scale; a group of zeros stays as it is."""
        return {name: s / self.scale(s) if s.any() else s for name, s in scores.items()}


class MaxNorm(Normalise):
    """Divides by the group's largest absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The largest absolute score."""
        return score.abs().max()


class MeanNorm(Normalise):
    """Divides by the group's mean absolute score."""

    def scale(self, score: Tensor) -> Tensor:
        """The mean absolute score."""
        return score.abs().mean()
