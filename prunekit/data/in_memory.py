"""Image sets that fit into memory: whole batches are cut, flipped and normalised as tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from prunekit.data.base import (
    Data,
    Dataset,
    HeldOut,
    Mean,
    Shift,
    SplitSeed,
    Std,
    sampled,
    shuffled_steps,
    stratified,
    triple,
)
from prunekit.errors import ConfigError, DataError
from prunekit.schema import Checked, Count, Share

Flip = Annotated[bool, "mirrors half of the training images"]


class Augmentation(Protocol):
    """A random change of images: numbers are drawn for a whole epoch, then used batch by batch."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Random numbers for `count` images, one row for each."""

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The changed images (examples, channels, height, width)."""


@dataclass(frozen=True)
class RandomCrop(Checked):
    """Pad `pad` black pixels on every side and cut the old size out: a shift by up to `pad`."""

    pad: Count

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Top and left corner of each cut in the padded image."""
        return torch.randint(2 * self.pad + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The cuts."""
        height, width = images.shape[2:]
        windows = F.pad(images, (self.pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        every = torch.arange(len(images), device=images.device)
        return windows[every, :, drawn[:, 0], drawn[:, 1]]


@dataclass(frozen=True)
class HorizontalFlip(Checked):
    """Mirror an image left to right with probability `chance`."""

    chance: Share = 0.5

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Whether each image is mirrored."""
        return torch.rand(count, generator=generator) < self.chance

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """The images, some of them mirrored."""
        return torch.where(drawn[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Normalize:
    """Subtract `mean` and divide by `std`, a number per channel each, for pixels from 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", triple("mean", self.mean))
        object.__setattr__(self, "std", triple("std", self.std))
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ConfigError(
                f"mean={self.mean} and std={self.std} need one number per channel, std above 0"
            )

    def factors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift that normalise such images; bytes count as pixels from 0 to 255."""
        if images.shape[1] != len(self.mean):
            raise DataError(
                f"mean={self.mean} has {len(self.mean)} numbers, images have {images.shape[1]} "
                "channels; give one number per channel"
            )
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = (torch.tensor(v, device=images.device) for v in (self.mean, self.std))
        return (1 / (full * std))[:, None, None], (-mean / std)[:, None, None]


class TensorBatches:
    """Images (examples, channels, height, width) and labels, kept on the device they are on.

    Random numbers are drawn on the CPU for a whole epoch, so that batches do not depend on the
    device, and images are changed as bytes, before normalisation.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        normalize: Normalize,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        self.images, self.labels, self.augment = images, labels, tuple(augment)
        self._scale, self._shift = normalize.factors(images)

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.labels)

    def steps(self, batch: int) -> int:
        """The number of batches in a shuffled epoch."""
        return shuffled_steps(self.size, batch)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.epoch`."""
        return self._in_order(batch) if seed is None else self._shuffled(batch, seed)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.sample`."""
        return self.pick(sampled(self.size, count), batch)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.pick`."""
        for part in indices.to(self.labels.device).split(batch):
            if len(part):
                yield self._normalized(self.images[part]), self.labels[part]

    def _in_order(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(self.images.split(batch), self.labels.split(batch), strict=True):
            if len(labels):
                yield self._normalized(images), labels

    def _shuffled(self, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        device = self.labels.device
        order = torch.randperm(self.size, generator=generator).to(device)
        draws = [change.draw(self.size, generator).to(device) for change in self.augment]
        for step in range(self.steps(batch)):
            part = slice(step * batch, (step + 1) * batch)
            images = self.images.index_select(0, order[part])
            for change, drawn in zip(self.augment, draws, strict=True):
                images = change.apply(images, drawn[part])
            yield self._normalized(images), self.labels[order[part]]

    def _normalized(self, images: Tensor) -> Tensor:
        return torch.add(images * self._scale, self._shift)


@dataclass(frozen=True, eq=False)
class Examples:
    """Images (examples, channels, height, width), bytes or floats from 0 to 1, and long labels."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Examples:
        return Examples(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Raw:
    """What files hold: training and test examples, and notes for reports."""

    train: Examples
    test: Examples
    classes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageTensors(Dataset):
    """A data set of small images: subclasses read it, this splits, augments and normalises.

    `val` training images are held out, a count or a fraction below 1, every class in proportion;
    which ones depends on `split_seed` alone. Training images are shifted by up to `crop` pixels,
    and mirrored where `flip` is set.
    """

    mean: Mean = (0.5,)
    std: Std = (0.5,)
    val: HeldOut = 0
    split_seed: SplitSeed = 0
    crop: Shift = 0
    flip: Flip = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Normalize(self.mean, self.std)

    @abstractmethod
    def read(self) -> Raw:
        """Read the files; raises DataError when they are missing or damaged."""

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Read and split the images; the run's `seed` plays no part in what is loaded."""
        raw = self.read()
        rest, held = stratified(raw.train.labels, self.val, self.split_seed)
        augment = [RandomCrop(self.crop)] if self.crop else []
        augment += [HorizontalFlip()] if self.flip else []
        return Data(
            self._batches(raw.train[rest], device, augment),
            self._batches(raw.train[held], device),
            self._batches(raw.test, device),
            raw.classes,
            tuple(raw.test.images.shape[1:]),
            raw.notes,
        )

    def _batches(
        self,
        examples: Examples,
        device: torch.device | str,
        augment: Sequence[Augmentation] = (),
    ) -> TensorBatches:
        images, labels = examples.images.to(device), examples.labels.to(device)
        return TensorBatches(images, labels, Normalize(self.mean, self.std), augment)
