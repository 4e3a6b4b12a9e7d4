"""The vector that represents a channel: its centred Gram matrix, raw maps, or class means.

A vector per channel with n^2 entries would take too much memory; `Vectors` computes some entries at
a time, for all channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.features import Maps
from prunekit.methods.gram_lasso.kernels import CENTRINGS, Centring, Kernel, Laplacian
from prunekit.schema import Checked, OneOf

_BLOCK = 1024  # entries of maps that are multiplied at a time


class Vectors(ABC):
    """One vector per channel, computed in panels of some entries of all vectors.

    The entries are divided into steps. The sum of the panels' inner products, over ranges that
    cover each step once, is the inner product of the vectors.
    """

    @property
    @abstractmethod
    def steps(self) -> int:
        """The number of steps."""

    @property
    @abstractmethod
    def step_bytes(self) -> int:
        """An upper bound of the memory that one step takes."""

    @abstractmethod
    def panel(self, steps: range) -> Tensor:
        """Return the entries of these steps, (channels, entries), as a new tensor."""


class Columns(Checked, ABC):
    """Turns the maps of a channel into its vector, a column of the regression."""

    @property
    def min_examples(self) -> int:
        """The smallest number of examples for which vectors are not always zero."""
        return 2

    def refusal(self, inputs: Maps, outputs: Maps) -> str | None:
        """Return why input and output channels of a layer cannot be compared, or None."""
        return None

    @abstractmethod
    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """Return the vectors of all channels.

        `labels` are the classes of the examples. At most `room` bytes are taken at a time.
        """


@dataclass(frozen=True)
class Grams(Columns):
    """The centred kernel matrix of each channel, n x n for n examples (Liu et al. 2025, eq. 3)."""

    kernel: Annotated[Kernel, "similarity of the maps of two images"] = field(
        default_factory=Laplacian
    )
    centring: Annotated[
        str, OneOf(tuple(CENTRINGS)), "hkh: as published; unbiased: independent channels have 0"
    ] = "hkh"

    @property
    def min_examples(self) -> int:
        """The minimum of the centring."""
        return CENTRINGS[self.centring].min_examples

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """Return the upper triangles of the matrices."""
        return _Triangles(_Kernels.of(maps, self.kernel, CENTRINGS[self.centring], room))


@dataclass(frozen=True)
class ClassBlocks(Grams):
    """Means of the centred kernel matrix over pairs of classes. This option is ours, not published.

    The vector is P' K P, where P averages over the examples of each class in the batch.
    """

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """Return the vectors; raises ConfigError if all examples are of one class."""
        present, classes, counts = torch.unique(labels, return_inverse=True, return_counts=True)
        if len(present) < 2:
            raise ConfigError(
                "columns=ClassBlocks needs examples of two classes and the batch has "
                f"{len(present)}; raise statistics.batch or use columns=Grams"
            )
        mean = torch.nn.functional.one_hot(classes, len(present)).to(maps.dtype) / counts
        mean = mean.to(maps.values.device, maps.dtype)
        kernels = _Kernels.of(maps, self.kernel, CENTRINGS[self.centring], room)
        blocks = mean.new_empty(len(maps.values), len(present), len(present))
        for channels in kernels.parts:
            block = kernels.block(channels, range(maps.examples))
            blocks[channels.start : channels.stop] = mean.T @ block @ mean
        return _Stored(blocks)


@dataclass(frozen=True)
class RawMaps(Columns):
    """The centred maps of all examples and positions ("without Gram" in Liu et al. 2025).

    Input and output maps must have the same size.
    """

    def refusal(self, inputs: Maps, outputs: Maps) -> str | None:
        """Return the sizes of the maps if they differ, as in strided layers."""
        before, after = (sorted(set(maps.sizes.tolist())) for maps in (inputs, outputs))
        if before == after and len(before) == 1:
            return None
        sizes = " and ".join(map(str, before))
        return f"maps of {sizes} positions become maps of {after[0]}"

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """Return the deviations from the mean of each channel."""
        return _Deviations(maps)


@dataclass(frozen=True, eq=False)
class _Stored(Vectors):
    """Vectors that are in memory, (channels, steps, entries)."""

    values: Tensor

    @property
    def steps(self) -> int:
        return self.values.shape[1]

    @property
    def step_bytes(self) -> int:
        return self.values[:, 0].nbytes

    def panel(self, steps: range) -> Tensor:
        return self.values[:, steps.start : steps.stop].flatten(1)


class _Deviations(Vectors):
    """Maps minus the mean of their channel; a step is an example."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        variance, self.mean = _moments(maps, (1, 2))
        self.constant = _constant(variance, self.mean)

    @property
    def steps(self) -> int:
        return self.maps.examples

    @property
    def step_bytes(self) -> int:
        channels, _, entries = self.maps.values.shape
        return channels * entries * torch.finfo(self.maps.dtype).bits // 8

    def panel(self, steps: range) -> Tensor:
        values = self.maps.values[:, steps.start : steps.stop]
        panel = torch.empty(values.shape, dtype=self.maps.dtype, device=values.device)
        torch.sub(values, self.mean[:, None, None], out=panel)  # contiguous, unlike `values`
        panel[self.constant] = 0
        return panel.flatten(1)


@dataclass(frozen=True, eq=False)
class _Kernels:
    """The centred kernel matrices of all channels, represented by what a first pass computed.

    `mean` maps (channels, entries) are subtracted first. `norms` are squared, (channels, n);
    `scale` (channels,) is the kernel's, `offsets` (channels, n) the centring's; `constant` marks
    channels that are equal for all examples.
    """

    maps: Maps
    kernel: Kernel
    centring: Centring
    room: int
    mean: Tensor | None
    norms: Tensor
    scale: Tensor
    offsets: Tensor
    constant: Tensor

    @classmethod
    def of(cls, maps: Maps, kernel: Kernel, centring: Centring, room: int) -> _Kernels:
        """Compute all kernel matrices once, a few channels at a time."""
        variance, mean = _moments(maps, 1)
        constant = _constant(variance.sum(1), mean.square().sum(1).sqrt())
        shift = mean if kernel.shifts else None
        # Allocate first: small tensors that outlive large ones keep a heap from shrinking.
        norms = mean.new_empty(maps.values.shape[:2])
        offsets = torch.empty_like(norms)
        scale = norms.new_empty(len(norms))
        for part in _parts(maps, maps.examples, maps.examples, room):
            channels = slice(part.start, part.stop)
            block = _products(maps, part, shift, range(maps.examples))
            norms[channels] = block.diagonal(dim1=1, dim2=2)
            block = kernel.argument(block, norms[channels], norms[channels])
            scale[channels] = kernel.scale(block, maps.sizes[channels])
            block = kernel.values(block, scale[channels])
            diagonal = block.diagonal(dim1=1, dim2=2).double()
            offsets[channels] = centring.offsets(block.sum(2, dtype=torch.float64), diagonal)
            del block
        return cls(maps, kernel, centring, room, shift, norms, scale, offsets, constant)

    @property
    def parts(self) -> Iterator[range]:
        """Ranges of channels whose whole matrices fit into `room`."""
        return _parts(self.maps, self.maps.examples, self.maps.examples, self.room)

    def block(self, part: range, examples: range) -> Tensor:
        """Return centred kernels of some channels.

        Rows are these examples; columns start at the first of them.
        """
        channels = slice(part.start, part.stop)
        rows, columns = slice(examples.start, examples.stop), slice(examples.start, None)
        norms, offsets = self.norms[channels], self.offsets[channels]
        block = _products(self.maps, part, self.mean, examples)
        block = self.kernel.argument(block, norms[:, rows], norms[:, columns])
        block = self.kernel.values(block, self.scale[channels])
        block -= offsets[:, rows, None]
        block -= offsets[:, None, columns]
        self.centring.fix_diagonal(block)
        block[self.constant[channels]] = 0
        return block


@dataclass(frozen=True, eq=False)
class _Triangles(Vectors):
    """The upper triangles of kernel matrices; a step is an example, that is a matrix row.

    Entries off the diagonal are multiplied by sqrt(2), so that inner products are those of the
    whole symmetric matrices.
    """

    kernels: _Kernels

    @property
    def steps(self) -> int:
        return self.kernels.maps.examples

    @property
    def step_bytes(self) -> int:
        maps = self.kernels.maps
        return len(maps.values) * maps.examples * torch.finfo(maps.dtype).bits // 8

    def panel(self, steps: range) -> Tensor:
        maps, width = self.kernels.maps, self.steps - steps.start
        dtype, device = maps.dtype, maps.values.device
        weights = torch.full((len(steps), width), 2**0.5, dtype=dtype, device=device).triu_()
        weights.fill_diagonal_(1)
        shape = (len(maps.values), len(steps), width)
        panel = torch.empty(shape, dtype=dtype, device=device)
        for part in _parts(maps, len(steps), width, self.kernels.room):
            block = self.kernels.block(part, steps)
            torch.mul(block, weights, out=panel[part.start : part.stop])
        return panel.flatten(1)


def _parts(maps: Maps, height: int, width: int, room: int) -> Iterator[range]:
    """Return ranges of channels whose kernels of this shape, with copies of maps, fit `room`."""
    channels, examples, entries = maps.values.shape
    numbers = 6 * height * width + 3 * examples * min(entries, _BLOCK)
    count = max(1, room * 8 // (numbers * torch.finfo(maps.dtype).bits))
    return (range(first, min(first + count, channels)) for first in range(0, channels, count))


def _products(maps: Maps, part: range, mean: Tensor | None, examples: range) -> Tensor:
    """Return inner products of maps minus `mean`: of these examples with all from the first on."""
    values = maps.values[part.start : part.stop]
    shape = (len(part), len(examples), maps.examples - examples.start)
    products = torch.zeros(shape, dtype=maps.dtype, device=values.device)
    for first in range(0, values.shape[2], _BLOCK):
        entries = slice(first, first + _BLOCK)
        block = values[:, examples.start :, entries].to(maps.dtype)
        if mean is not None:
            block = block - mean[part.start : part.stop, None, entries]
        block = block.contiguous()
        products.baddbmm_(block[:, : len(examples)], block.mT)
    return products


def _moments(maps: Maps, dims: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return variances and means over examples (1), or over examples and positions (1, 2)."""
    count = max(1, _BLOCK * _BLOCK // maps.values[0].numel())
    parts = torch.split(maps.values, count)
    moments = [torch.var_mean(part.to(maps.dtype), dims, correction=0) for part in parts]
    variance, mean = (torch.cat(each) for each in zip(*moments, strict=True))
    return variance, mean


def _constant(variance: Tensor, size: Tensor) -> Tensor:
    """Return a mask of channels whose examples differ by no more than rounding."""
    return variance.sqrt() <= 16 * torch.finfo(variance.dtype).eps * size.abs()
