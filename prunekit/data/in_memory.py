"""Image sets that fit into memory, changed and normalised batch by batch as tensors."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Protocol

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from prunekit.data.base import (
    Data,
    Dataset,
    Flip,
    HeldOut,
    Mean,
    PixelShift,
    Side,
    SplitSeed,
    Std,
    check_per_channel,
    sample_indices,
    shuffled_steps,
    split_by_class,
)
from prunekit.data.files import Files
from prunekit.errors import ConfigError, DataError
from prunekit.schema import Checked, Count, NotNegative, Share, Whole


class Augmentation(Protocol):
    """A random change of images, whose random numbers are drawn for a whole epoch at once."""

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw random numbers for `count` images; the first dimension counts images."""

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the changed images (examples, channels, height, width)."""


@dataclass(frozen=True)
class RandomCrop(Checked):
    """Shift images by up to `pad` pixels: pad with black on every side and crop to the old size."""

    pad: Count

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw the top and left corner of each crop in the padded image."""
        return torch.randint(2 * self.pad + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the crops."""
        height, width = images.shape[2:]
        windows = F.pad(images, (self.pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        indices = torch.arange(len(images), device=images.device)
        return windows[indices, :, numbers[:, 0], numbers[:, 1]]


@dataclass(frozen=True)
class HorizontalFlip(Checked):
    """Mirror an image left to right with probability `chance`."""

    chance: Share = 0.5

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Draw for each image whether it is mirrored."""
        return torch.rand(count, generator=generator) < self.chance

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Return the images, some of them mirrored."""
        return torch.where(numbers[:, None, None, None], images.flip(3), images)


@dataclass(frozen=True)
class Normalize:
    """Subtract `mean` and divide by `std`, with a number per channel, for pixels from 0 to 1."""

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", check_per_channel("mean", self.mean))
        object.__setattr__(self, "std", check_per_channel("std", self.std))
        if len(self.mean) != len(self.std) or min(self.std, default=0) <= 0:
            raise ConfigError(
                f"mean={self.mean} and std={self.std} need one number per channel, std above 0"
            )

    def factors(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scale and shift that normalise such images; bytes are pixels up to 255."""
        if images.shape[1] != len(self.mean):
            raise DataError(
                f"mean={self.mean} has {len(self.mean)} numbers, images have {images.shape[1]} "
                "channels; give one number per channel"
            )
        full = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = (torch.tensor(v, device=images.device) for v in (self.mean, self.std))
        return (1 / (full * std))[:, None, None], (-mean / std)[:, None, None]


class TensorBatches:
    """Batches of images (examples, channels, height, width) and labels, on the tensors' device.

    Random numbers are drawn on the CPU for a whole epoch, so that batches do not depend on the
    device. Images are changed as bytes, before normalisation. Raises DataError for images with
    values that are not finite.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        normalize: Normalize,
        augment: Sequence[Augmentation] = (),
    ) -> None:
        _refuse_not_finite(images)
        self.images, self.labels, self.augment = images, labels, tuple(augment)
        self._scale, self._shift = normalize.factors(images)

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.labels)

    def steps(self, batch: int) -> int:
        """Return the number of batches in a shuffled epoch."""
        return shuffled_steps(self.size, batch)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.epoch`."""
        return self._in_order(batch) if seed is None else self._shuffled(batch, seed)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.sample`."""
        return self.pick(sample_indices(self.size, count), batch)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.pick`."""
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
            for change, numbers in zip(self.augment, draws, strict=True):
                images = change.apply(images, numbers[part])
            yield self._normalized(images), self.labels[order[part]]

    def _normalized(self, images: Tensor) -> Tensor:
        return torch.add(images * self._scale, self._shift)


def _refuse_not_finite(images: Tensor) -> None:
    if not images.is_floating_point() or bool(images.isfinite().all()):
        return
    finite = images.isfinite().flatten(1).all(dim=1)
    raise DataError(
        f"image {int((~finite).nonzero()[0])} of {len(images)} holds nan or infinite values; mend "
        "or remove it"
    )


@dataclass(frozen=True, eq=False)
class Examples:
    """Images (examples, channels, height, width), bytes or floats from 0 to 1, and long labels."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Examples:
        return Examples(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Raw:
    """The content of the files: training and test examples, and notes for reports."""

    train: Examples
    test: Examples
    classes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageTensors(Dataset):
    """A data set of small images: subclasses read it, this class splits, augments and normalises.

    `val` training images are held out, a count or a fraction below 1, with every class in
    proportion; the choice depends on `split_seed` only. Training images are shifted by up to `crop`
    pixels, and mirrored at random if `flip` is set.
    """

    mean: Mean = (0.5,)
    std: Std = (0.5,)
    val: HeldOut = 0
    split_seed: SplitSeed = 0
    crop: PixelShift = 0
    flip: Flip = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Normalize(self.mean, self.std)

    @abstractmethod
    def read(self) -> Raw:
        """Read the files; raise DataError when they are missing or damaged."""

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Read and split the images; `seed` has no influence."""
        raw = self.read()
        rest, held_out = split_by_class(raw.train.labels, self.val, self.split_seed)
        augment: list[Augmentation] = [RandomCrop(self.crop)] if self.crop else []
        augment += [HorizontalFlip()] if self.flip else []
        return Data(
            self._batches(raw.train[rest], device, augment),
            self._batches(raw.train[held_out], device),
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


_FILE = "digits.csv.gz"
_TEST = 360  # of 1,797 images, always the same ones


@dataclass(frozen=True, kw_only=True)
class Digits(ImageTensors):
    """Load the 1,797 handwritten digits of scikit-learn, 8 x 8 pixels enlarged to `image_size`.

    360 of them are the test set.
    """

    image_size: Side = 28
    val: HeldOut = 180

    @property
    def shape(self) -> tuple[int, ...]:
        """One channel of `image_size` squared."""
        return (1, self.image_size, self.image_size)

    def files(self) -> Files:
        """Return the one file of scikit-learn."""
        return {_FILE: _digits_file()}

    def read(self) -> Raw:
        """Return training and test digits as bytes."""
        table = torch.from_numpy(_table())
        small = table[:, :64].view(-1, 1, 8, 8).float() * (255 / 16)
        size = (self.image_size, self.image_size)
        large = F.interpolate(small, size, mode="bilinear", align_corners=False)
        digits = Examples(large.round().byte(), table[:, 64].long())
        train, test = split_by_class(digits.labels, _TEST, seed=0)
        return Raw(digits[train], digits[test], classes=10)


def _table() -> np.ndarray:
    """Return a matrix with a row per image: 64 pixels from 0 to 16, then the label.

    scikit-learn's file is read directly, because importing scikit-learn takes a second.
    """
    file = _digits_file()
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _digits_file() -> Path:
    """Return the path of scikit-learn's file, found without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    package = Path(spec.origin).parent if spec and spec.origin else Path()
    return package / "datasets" / "data" / _FILE


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageTensors):
    """Generate `train` + `test` images: a smooth random pattern per class plus pixel noise.

    A small network learns them within seconds. The patterns have a standard deviation of 1 and the
    noise one of `noise`; both are drawn with `data_seed`. `val` training images are held out.
    """

    classes: Annotated[Count, "number of classes"] = 10
    channels: Annotated[Count, "channels of an image"] = 1
    image_size: Side = 28
    train: Annotated[Count, "training images, including those held out"] = 640
    test: Annotated[Count, "test images"] = 200
    noise: Annotated[NotNegative, "standard deviation of the noise; that of patterns is 1"] = 1.0
    data_seed: Annotated[Whole, "seed of patterns and noise"] = 0
    val: HeldOut = 128
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            object.__setattr__(self, name, (neutral,) * self.channels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return (self.channels, self.image_size, self.image_size)

    def read(self) -> Raw:
        """Generate the patterns and the images."""
        generator = torch.Generator().manual_seed(self.data_seed)
        patterns = self._patterns(generator)
        train, test = (self._images(patterns, n, generator) for n in (self.train, self.test))
        return Raw(train, test, self.classes)

    def _patterns(self, generator: torch.Generator) -> Tensor:
        coarse = torch.randn(self.classes, self.channels, 4, 4, generator=generator)
        size = (self.image_size, self.image_size)
        smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        return smooth / smooth.flatten(1).std(dim=1)[:, None, None, None].clamp_min(1e-6)

    def _images(self, patterns: Tensor, count: int, generator: torch.Generator) -> Examples:
        labels = torch.arange(count) % self.classes
        clean = patterns[labels]
        noise = torch.randn(clean.shape, generator=generator)
        return Examples(clean + self.noise * noise, labels)
