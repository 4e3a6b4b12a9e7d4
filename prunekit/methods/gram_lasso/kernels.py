"""Kernels that compare two feature maps, and the centring of their matrices.

A kernel is a function of inner products, or of squared distances, of flattened maps. Kernels of
many channels are computed at once, block by block of examples, in place to save memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from prunekit.schema import Checked


class Kernel(Checked, ABC):
    """A similarity of the maps of two examples, computed for every channel separately."""

    shifts: ClassVar[bool] = True
    """True if adding one map to all examples leaves the centred kernel matrix unchanged."""

    @abstractmethod
    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the argument of the kernel function, computed in place of `products`.

        `products` are inner products of examples, (channels, rows, columns); the diagonal of each
        block pairs an example with itself. `left` (channels, rows) and `right` (channels, columns)
        are squared norms.
        """

    @abstractmethod
    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """Return the divisor of the argument of each channel, (channels,), never zero.

        `argument` covers all examples, (channels, n, n); `sizes` counts the entries of a map.
        """

    @abstractmethod
    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Return the kernel values, computed in place of `argument`."""


@dataclass(frozen=True)
class Linear(Kernel):
    """The inner product. It has no bandwidth, because Gram matrices are normalised anyway."""

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products."""
        return products

    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """Return ones."""
        return argument.new_ones(len(argument))

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Return the inner products."""
        return argument


@dataclass(frozen=True)
class Scaled(Kernel):
    """A kernel with a bandwidth.

    `median` computes the bandwidth from the maps of each channel, so that their scale does not
    matter; if the median is zero, the mean is used. `apib` is the fixed bandwidth of the code
    released with APIB, which depends on the scale of the maps.
    """

    bandwidth: Annotated[
        Literal["median", "apib"], "median of each channel's maps, or fixed as in APIB's code"
    ] = "median"

    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """Return the bandwidth of each channel."""
        if self.bandwidth == "apib":
            return self.fixed(sizes).to(argument.dtype)
        samples = self.samples(argument)
        middle = median(samples)
        middle = torch.where(middle > 0, middle, samples.mean(1))
        return torch.where(middle > 0, middle, torch.ones_like(middle))

    @abstractmethod
    def fixed(self, sizes: Tensor) -> Tensor:
        """Return APIB's bandwidth for maps with these numbers of entries."""

    @abstractmethod
    def samples(self, argument: Tensor) -> Tensor:
        """Return the numbers whose median is the bandwidth, (channels, samples)."""


@dataclass(frozen=True)
class Sigmoid(Scaled):
    """tanh(inner product / m), where m is the median squared norm (1 for `apib`); may be negative.

    A map that is added to all examples changes it.
    """

    shifts: ClassVar[bool] = False

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products."""
        return products

    def fixed(self, sizes: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones_like(sizes)

    def samples(self, argument: Tensor) -> Tensor:
        """Return the squared norms."""
        return argument.diagonal(dim1=1, dim2=2)

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Return the hyperbolic tangents."""
        return argument.div_(scale[:, None, None]).tanh_()


@dataclass(frozen=True)
class OfDistance(Scaled):
    """A kernel of the Euclidean distance; its bandwidth is the median over pairs of examples."""

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Return squared distances; those within the rounding error of equal maps become zero."""
        sums = left[:, :, None] + right[:, None, :]
        distances = products.mul_(-2).add_(sums)
        rounding = sums.mul_(8 * torch.finfo(distances.dtype).eps)
        distances.masked_fill_(distances <= rounding, 0)
        distances.diagonal(dim1=1, dim2=2).zero_()
        return distances

    def samples(self, argument: Tensor) -> Tensor:
        """Return the squared distances of all pairs."""
        count = argument.shape[2]
        first, second = torch.triu_indices(count, count, 1, device=argument.device)
        return argument.flatten(1).index_select(1, first * count + second)


@dataclass(frozen=True)
class Gaussian(OfDistance):
    """exp(-d^2 / m), where m is the median of d^2 (for `apib` the number of entries of a map)."""

    def fixed(self, sizes: Tensor) -> Tensor:
        """Return the numbers of entries."""
        return sizes

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Return the exponentials of the squared distances."""
        return argument.div_(-scale[:, None, None]).exp_()


@dataclass(frozen=True)
class Laplacian(OfDistance):
    """exp(-d / sqrt(m)), where m is the median of d^2 (for `apib` twice the entries of a map)."""

    def fixed(self, sizes: Tensor) -> Tensor:
        """Return twice the numbers of entries."""
        return 2 * sizes

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Return the exponentials of the distances."""
        return argument.div_(scale[:, None, None]).sqrt_().neg_().exp_()


def median(values: Tensor) -> Tensor:
    """Return the median of each row; for an even count, the mean of the middle two."""
    count = values.shape[1]
    low = values.kthvalue((count + 1) // 2, 1).values
    return low if count % 2 else (low + values.kthvalue(count // 2 + 1, 1).values) / 2


class Centring(ABC):
    """Centres an n x n kernel matrix: subtracts one number per row and one per column."""

    min_examples: ClassVar[int]
    """The smallest n for which the centred matrix is not always zero."""

    @abstractmethod
    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """Return the numbers to subtract from each row and, equally, each column, (channels, n).

        `sums` are the row sums and `diagonal` the diagonal entries, both double.
        """

    @abstractmethod
    def fix_diagonal(self, block: Tensor) -> None:
        """Correct the diagonal of a centred block in place, (channels, rows, columns)."""


@dataclass(frozen=True)
class HKH(Centring):
    """H K H with H = I - 11'/n, as published.

    All channels share the diagonal of K, which makes even independent channels look similar, more
    so for few examples: noise has 0.85 with 128 examples and the Laplacian kernel.
    """

    min_examples: ClassVar[int] = 2

    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """Return the row means minus half the grand mean."""
        n = sums.shape[1]
        return sums / n - sums.sum(1, keepdim=True) / (2 * n * n)

    def fix_diagonal(self, block: Tensor) -> None:
        """Leave the diagonal as it is."""


@dataclass(frozen=True)
class Unbiased(Centring):
    """U-centring (Song et al. 2012): the diagonal is zero, the other entries sum to zero by row.

    The expected inner product of independent channels is zero, so values may be negative.
    """

    min_examples: ClassVar[int] = 4

    def offsets(self, sums: Tensor, diagonal: Tensor) -> Tensor:
        """Return the means without the diagonal."""
        n = sums.shape[1]
        others = sums - diagonal
        return others / (n - 2) - others.sum(1, keepdim=True) / (2 * (n - 1) * (n - 2))

    def fix_diagonal(self, block: Tensor) -> None:
        """Set the diagonal to zero."""
        block.diagonal(dim1=1, dim2=2).zero_()


CENTRINGS: dict[str, Centring] = {"hkh": HKH(), "unbiased": Unbiased()}
