"""What channels are compared by: centred Gram matrices, raw maps, or class means of either.

The columns of a regression on all examples would take more memory than there is; `Vectors` hands
out some of their entries at a time, for all channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.centering import CENTRINGS, Centring
from prunekit.methods.gram_lasso.features import Maps
from prunekit.methods.gram_lasso.kernels import Kernel, Laplacian
from prunekit.schema import Checked, OneOf

_BLOCK = 1024  # entries of maps that are multiplied at a time


class Vectors(ABC):
    """A vector for every channel, handed out piece by piece.

    A panel (channels, entries) covers `rows` of `steps`; inner products of vectors are the sums
    over panels that cover all steps once. One step takes at most `step_bytes`.
    """

    steps: int
    step_bytes: int

    @abstractmethod
    def panel(self, rows: range) -> Tensor:
        """The entries of these steps, in a tensor of their own."""


class Columns(Checked, ABC):
    """How the maps of a channel become its vector."""

    @property
    def least(self) -> int:
        """The fewest examples that give vectors which are not zero."""
        return 2

    def refusal(self, inputs: Maps, outputs: Maps) -> str | None:
        """Why the input and output channels of a layer cannot be compared, if they cannot."""
        return None

    @abstractmethod
    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """The vectors of all channels; `room` is how many bytes may be taken at a time.

        `labels` are the classes of the examples.
        """


@dataclass(frozen=True)
class Grams(Columns):
    """The centred kernel matrix of every channel, n x n for n examples (Liu et al. 2025, eq. 3).

    `centring`: `hkh` as published, or `unbiased`.
    """

    kernel: Annotated[Kernel, "how alike the maps of two images are"] = field(
        default_factory=Laplacian
    )
    centring: Annotated[
        str, OneOf(tuple(CENTRINGS)), "as published; unbiased: independent channels have 0"
    ] = "hkh"

    @property
    def least(self) -> int:
        """Two, or four."""
        return CENTRINGS[self.centring].least

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """The half above the diagonal, times the square root of two."""
        return _Triangles(_Fitted.to(maps, self.kernel, CENTRINGS[self.centring], room))


@dataclass(frozen=True)
class ClassBlocks(Grams):
    """Means of the centred kernel matrix over pairs of classes. An option of ours, not published.

    P' K P, P the average over the examples of each class, for the classes in the batch; a vector
    has the square of their number of entries and is held whole.
    """

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """ConfigError where all examples are of one class."""
        present, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        if len(present) < 2:
            raise ConfigError(
                "columns=ClassBlocks needs examples of two classes and the batch has "
                f"{len(present)}; raise statistics.batch or use columns=Grams"
            )
        mean = torch.nn.functional.one_hot(classes, len(present)).to(maps.dtype) / counts
        mean = mean.to(maps.values.device, maps.dtype)
        fitted = _Fitted.to(maps, self.kernel, CENTRINGS[self.centring], room)
        blocks = mean.new_empty(len(maps.values), len(present), len(present))
        for part in fitted.parts:
            block = fitted.block(part, range(maps.examples))
            blocks[part.start : part.stop] = mean.T @ block @ mean
        return _Held(blocks)


@dataclass(frozen=True)
class RawMaps(Columns):
    """The maps themselves, all examples and positions, centred ("without Gram" of Liu et al. 2025).

    Input and output maps must have the same size.
    """

    def refusal(self, inputs: Maps, outputs: Maps) -> str | None:
        """Strided layers have none of these."""
        before, after = (sorted(set(maps.sizes.tolist())) for maps in (inputs, outputs))
        if before == after and len(before) == 1:
            return None
        sizes = " and ".join(map(str, before))
        return f"maps of {sizes} positions become maps of {after[0]}"

    def vectors(self, maps: Maps, labels: Tensor, room: int) -> Vectors:
        """The deviations from the mean of each channel."""
        return _Deviations(maps)


@dataclass(frozen=True, eq=False)
class _Held(Vectors):
    """Vectors that are in memory, (channels, steps, entries)."""

    values: Tensor

    @property
    def steps(self) -> int:
        return self.values.shape[1]

    @property
    def step_bytes(self) -> int:
        return self.values[:, 0].nbytes

    def panel(self, rows: range) -> Tensor:
        return self.values[:, rows.start : rows.stop].flatten(1)


class _Deviations(Vectors):
    """Maps less the mean of their channel; a step is an example."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        channels, self.steps, entries = maps.values.shape
        self.step_bytes = channels * entries * torch.finfo(maps.dtype).bits // 8
        spread, self.mean = _moments(maps, (1, 2))
        self.constant = _constant(spread, self.mean)

    def panel(self, rows: range) -> Tensor:
        values = self.maps.values[:, rows.start : rows.stop]
        found = torch.empty(values.shape, dtype=self.maps.dtype, device=values.device)
        torch.sub(values, self.mean[:, None, None], out=found)  # in the order of `found`
        found[self.constant] = 0
        return found.flatten(1)


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Centred kernels of all channels, given by what a pass over them found.

    `mean` maps (channels, entries) that are subtracted first, squared `norms` (channels, n), kernel
    `scale` (channels), `offsets` of the centring (channels, n), `constant` channels.
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
    def to(cls, maps: Maps, kernel: Kernel, centring: Centring, room: int) -> _Fitted:
        """A pass over the kernel matrices, a few channels at a time."""
        spread, mean = _moments(maps, 1)
        constant = _constant(spread.sum(1), mean.square().sum(1).sqrt())
        shift = mean if kernel.shifts else None
        # Made before the loop: small tensors that outlive large ones keep a heap from shrinking.
        norms = mean.new_empty(maps.values.shape[:2])
        offsets = torch.empty_like(norms)
        scale = norms.new_empty(len(norms))
        for part in _parts(maps, maps.examples, maps.examples, room):
            channels = slice(part.start, part.stop)
            found = _products(maps, part, shift, range(maps.examples))
            norms[channels] = found.diagonal(dim1=1, dim2=2)
            found = kernel.argument(found, norms[channels], norms[channels])
            scale[channels] = kernel.scale(found, maps.sizes[channels])
            found = kernel.values(found, scale[channels])
            diagonal = found.diagonal(dim1=1, dim2=2).double()
            offsets[channels] = centring.offsets(found.sum(2, dtype=torch.float64), diagonal)
            del found
        return cls(maps, kernel, centring, room, shift, norms, scale, offsets, constant)

    @property
    def parts(self) -> Iterator[range]:
        """Channels whose whole matrices fit."""
        return _parts(self.maps, self.maps.examples, self.maps.examples, self.room)

    def block(self, part: range, rows: range) -> Tensor:
        """Centred kernels of some channels: these rows, and the columns from the first of them."""
        channels, columns = slice(part.start, part.stop), slice(rows.start, None)
        lines = slice(rows.start, rows.stop)
        norms, offsets = self.norms[channels], self.offsets[channels]
        found = _products(self.maps, part, self.mean, rows)
        found = self.kernel.argument(found, norms[:, lines], norms[:, columns])
        found = self.kernel.values(found, self.scale[channels])
        found -= offsets[:, lines, None]
        found -= offsets[:, None, columns]
        self.centring.diagonal(found)
        found[self.constant[channels]] = 0
        return found


class _Triangles(Vectors):
    """Upper triangles of symmetric matrices, weighted so that inner products are the matrices'."""

    def __init__(self, fitted: _Fitted) -> None:
        self.fitted = fitted
        channels, self.steps, _ = fitted.maps.values.shape
        self.step_bytes = channels * self.steps * torch.finfo(fitted.maps.dtype).bits // 8

    def panel(self, rows: range) -> Tensor:
        maps, width = self.fitted.maps, self.steps - rows.start
        device = maps.values.device
        weights = torch.full((len(rows), width), 2**0.5, dtype=maps.dtype, device=device).triu_()
        weights.fill_diagonal_(1)
        shape = (len(maps.values), len(rows), width)
        found = torch.empty(shape, dtype=maps.dtype, device=device)
        for part in _parts(maps, len(rows), width, self.fitted.room):
            block = self.fitted.block(part, rows)
            torch.mul(block, weights, out=found[part.start : part.stop])
        return found.flatten(1)


def _parts(maps: Maps, rows: int, columns: int, room: int) -> Iterator[range]:
    """Channels, as many at a time as fit with their kernels of these sizes and copies of maps."""
    channels, examples, entries = maps.values.shape
    numbers = 6 * rows * columns + 3 * examples * min(entries, _BLOCK)
    most = max(1, room * 8 // (numbers * torch.finfo(maps.dtype).bits))
    return (range(first, min(first + most, channels)) for first in range(0, channels, most))


def _products(maps: Maps, part: range, mean: Tensor | None, rows: range) -> Tensor:
    """Inner products of maps less `mean`: these examples with them and all that follow."""
    values = maps.values[part.start : part.stop]
    shape = (len(part), len(rows), maps.examples - rows.start)
    found = torch.zeros(shape, dtype=maps.dtype, device=values.device)
    for first in range(0, values.shape[2], _BLOCK):
        entries = slice(first, first + _BLOCK)
        block = values[:, rows.start :, entries].to(maps.dtype)
        if mean is not None:
            block = block - mean[part.start : part.stop, None, entries]
        block = block.contiguous()
        found.baddbmm_(block[:, : len(rows)], block.mT)
    return found


def _moments(maps: Maps, over: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Variances and means over examples (1), and positions (2)."""
    most = max(1, _BLOCK * _BLOCK // maps.values[0].numel())
    parts = maps.values.split(most)
    found = [torch.var_mean(part.to(maps.dtype), over, correction=0) for part in parts]
    spread, mean = (torch.cat(each) for each in zip(*found, strict=True))
    return spread, mean


def _constant(spread: Tensor, size: Tensor) -> Tensor:
    """Channels whose examples differ by no more than rounding would make of equal ones."""
    return spread.sqrt() <= 16 * torch.finfo(spread.dtype).eps * size.abs()
