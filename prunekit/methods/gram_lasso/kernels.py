"""How alike two feature maps are: linear, Gaussian, sigmoid and Laplacian kernels.

A kernel is a function of inner products or of squared distances of flattened maps. It is computed
for many channels at once, block by block of examples; tensors are overwritten to save memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from prunekit.schema import Checked


class Kernel(Checked, ABC):
    """A similarity of two examples' maps, for every channel by itself."""

    shifts: ClassVar[bool] = True
    """Whether a map that is added to all examples alike leaves the centred kernel as it is."""

    @abstractmethod
    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """What the kernel is a function of, in place of `products`.

        `products` are inner products of examples (channels, rows, columns), a block whose diagonal
        is an example with itself; `left` and `right` are squared norms (channels, rows), (channels,
        columns).
        """

    @abstractmethod
    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """What the argument is divided by, per channel; never zero.

        `argument` is that of all examples (channels, n, n), `sizes` the entries of a map.
        """

    @abstractmethod
    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """The kernel's values, in place of `argument`."""


@dataclass(frozen=True)
class Linear(Kernel):
    """The inner product; its scale cancels where Gram matrices are normalised."""

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Inner products."""
        return products

    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """One."""
        return argument.new_ones(len(argument))

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Inner products."""
        return argument


@dataclass(frozen=True)
class Scaled(Kernel):
    """A kernel with a bandwidth.

    `median` takes it from the maps of each channel, so that their scale does not matter (where
    more than half of what it is the median of is zero, the mean); `apib` is the fixed one of
    APIB's released code, which reads maps as they are.
    """

    bandwidth: Annotated[
        Literal["median", "apib"], "of each channel's maps; apib: fixed, as released"
    ] = "median"

    def scale(self, argument: Tensor, sizes: Tensor) -> Tensor:
        """The median of the channel, or what the map's size gives."""
        if self.bandwidth == "apib":
            return self.fixed(sizes).to(argument.dtype)
        found = self.spread(argument)
        middle = median(found)
        middle = torch.where(middle > 0, middle, found.mean(1))
        return torch.where(middle > 0, middle, torch.ones_like(middle))

    @abstractmethod
    def fixed(self, sizes: Tensor) -> Tensor:
        """APIB's bandwidth for maps of these sizes."""

    @abstractmethod
    def spread(self, argument: Tensor) -> Tensor:
        """What the median is taken of, (channels, values)."""


@dataclass(frozen=True)
class Sigmoid(Scaled):
    """The hyperbolic tangent of the inner product over the median squared norm; may be negative."""

    shifts: ClassVar[bool] = False

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Inner products."""
        return products

    def fixed(self, sizes: Tensor) -> Tensor:
        """No bandwidth."""
        return torch.ones_like(sizes)

    def spread(self, argument: Tensor) -> Tensor:
        """Squared norms."""
        return argument.diagonal(dim1=1, dim2=2)

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Hyperbolic tangents."""
        return argument.div_(scale[:, None, None]).tanh_()


@dataclass(frozen=True)
class OfDistance(Scaled):
    """A kernel of the Euclidean distance; its bandwidth is the median over pairs of examples."""

    def argument(self, products: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Squared distances, zero where they are no more than what rounding makes of equal maps."""
        least = left[:, :, None] + right[:, None, :]
        found = products.mul_(-2).add_(least)
        found.masked_fill_(found <= least.mul_(8 * torch.finfo(found.dtype).eps), 0)
        found.diagonal(dim1=1, dim2=2).zero_()
        return found

    def spread(self, argument: Tensor) -> Tensor:
        """Squared distances of the pairs."""
        first, second = torch.triu_indices(*argument.shape[1:], 1, device=argument.device)
        return argument.flatten(1).index_select(1, first * argument.shape[2] + second)


@dataclass(frozen=True)
class Gaussian(OfDistance):
    """exp(-d^2 / m), m the median of d^2 over pairs of examples, or the size of a map (`apib`)."""

    def fixed(self, sizes: Tensor) -> Tensor:
        """The size of a map."""
        return sizes

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Exponentials of squared distances."""
        return argument.div_(-scale[:, None, None]).exp_()


@dataclass(frozen=True)
class Laplacian(OfDistance):
    """exp(-d / sqrt(m)) with the Euclidean distance, m as in `Gaussian`; 2 x size with `apib`."""

    def fixed(self, sizes: Tensor) -> Tensor:
        """Twice the size of a map."""
        return 2 * sizes

    def values(self, argument: Tensor, scale: Tensor) -> Tensor:
        """Exponentials of distances."""
        return argument.div_(scale[:, None, None]).sqrt_().neg_().exp_()


def median(values: Tensor) -> Tensor:
    """The median of each row; the mean of the middle two where their number is even."""
    count = values.shape[1]
    low = values.kthvalue((count + 1) // 2, 1).values
    return low if count % 2 else (low + values.kthvalue(count // 2 + 1, 1).values) / 2
