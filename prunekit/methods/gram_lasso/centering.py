"""How kernel matrices are centred: with a bias that all channels share, or without."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


class Centring(ABC):
    """Subtracts a number per row and per column of an n x n kernel matrix."""

    least: ClassVar[int]
    """The fewest examples that leave something."""

    @abstractmethod
    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """What is subtracted from each row, and from each column alike, (channels, n).

        `sums` are row sums, `diagonal` is an example with itself; all double.
        """

    @abstractmethod
    def diagonal(self, block: Tensor) -> None:
        """Put right what stands on the diagonal of a centred block, in place."""


@dataclass(frozen=True)
class HKH(Centring):
    """H K H with H = I - 11'/n, as published.

    The diagonal, which all channels share, makes independent channels look alike, the more the
    fewer examples: 0.85 for noise, 128 examples and the Laplacian kernel.
    """

    least: ClassVar[int] = 2

    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """Row mean less half the grand mean."""
        n = sums.shape[1]
        return sums / n - sums.sum(1, keepdim=True) / (2 * n * n)

    def diagonal(self, block: Tensor) -> None:
        """It stays."""


@dataclass(frozen=True)
class Unbiased(Centring):
    """U-centring (Song et al. 2012): zero diagonal, rows and columns that sum to zero beside it.

    Inner products of independent channels are zero in the mean, so they may be negative.
    """

    least: ClassVar[int] = 4

    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """Means that leave the diagonal out."""
        n = sums.shape[1]
        others = sums - diagonal
        return others / (n - 2) - others.sum(1, keepdim=True) / (2 * (n - 1) * (n - 2))

    def diagonal(self, block: Tensor) -> None:
        """It is zero."""
        block.diagonal(dim1=1, dim2=2).zero_()


CENTRINGS: dict[str, Centring] = {"hkh": HKH(), "unbiased": Unbiased()}
