"""What a data set is: three sets of batches, and settings that know how to load them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from torch import Tensor

from prunekit.data.identity import Files, identity_of_files
from prunekit.errors import ConfigError, DataError
from prunekit.schema import Checked, Count, Whole
from prunekit.validate import integer, number

_LOOKED_AT = 16  # images that tell two sets of equal labels apart
_NOISE = 4  # images are large where there are none: a network of ImageNet's, most likely


class Batches(Protocol):
    """Examples that can be gone through any number of times; nothing is remembered in between."""

    @property
    def size(self) -> int:
        """The number of examples."""

    def steps(self, batch: int) -> int:
        """The number of batches in a shuffled epoch."""

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels, `batch` at a time.

        Without a seed: in order, unchanged, the last batch may be smaller. With a seed: shuffled
        and augmented, the same for the same seed, and a last batch of one example is left out,
        which batch norm could not take.
        """

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most `count` examples, unchanged, `batch` at a time, the same ones at every call.

        A random mixture, whatever the order of the set: files often come class by class.
        """

    @property
    def labels(self) -> Tensor:
        """The label of every example, in order; no input is read for it."""

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """These examples, in this order, unchanged, `batch` at a time."""


@dataclass(frozen=True, eq=False)
class Data:
    """A loaded data set; `shape` is one example's, `notes` say what a report must not hide.

    `classes` is 0 where it is not known, as without any images.
    """

    train: Batches
    val: Batches
    test: Batches
    classes: int
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def example(self) -> Tensor:
        """Zeros of the shape (1, *shape), to trace a network with."""
        return torch.zeros(1, *self.shape)

    def inputs(self, count: int) -> Tensor:
        """At most `count` inputs of the test set, unchanged; a few of normal noise without one."""
        if self.test.size:
            return next(iter(self.test.epoch(count, None)))[0][:count]
        source = torch.Generator().manual_seed(0)
        return torch.randn(min(count, _NOISE), *self.shape, generator=source)


def images_id(batches: Batches) -> str:
    """Eight characters that are equal for sets of the same images, wherever these lie.

    Made of all labels, and of the mean size of pixels in a few images, spread evenly.
    """
    chosen = torch.linspace(0, batches.size - 1, min(_LOOKED_AT, batches.size)).round().long()
    sizes = [
        f"{float(image.double().abs().mean()):.4g}"
        for inputs, _ in batches.pick(chosen, _LOOKED_AT)
        for image in inputs.cpu()
    ]
    text = f"{batches.labels.tolist()} {sizes}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Dataset(Checked, ABC):
    """The settings of a data set: a frozen dataclass whose fields are checked when it is made.

    A set that draws its images gives a `version`, which is raised whenever it draws others.
    """

    version: ClassVar[str | None] = None

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, known before anything is read."""

    @abstractmethod
    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Read the data, batches on `device`; `seed` is the run's. Raises DataError."""

    def files(self) -> Files:
        """The files that the images are in, if they are: names that move with them, and places.

        `root` is no part of what a run is then. Raises DataError where they are missing.
        """
        return {}

    def identity(self) -> Mapping[str, Any] | None:
        """What the images are, wherever they lie, without loading them; None: not known.

        Empty where the settings say all there is to say.
        """
        files = self.files()
        found = identity_of_files(files) if files else {}
        found |= {} if self.version is None else {"version": self.version}
        return found or None


def shuffled_steps(size: int, batch: int) -> int:
    """How many batches `size` examples make when a last batch of one is left out."""
    full, rest = divmod(size, batch)
    return full + (rest > 1 or (rest == 1 and full == 0))


def sampled(size: int, count: int, seed: int = 0) -> Tensor:
    """The indices of `count` of `size` examples, drawn at random, the same for the same seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


def balanced(labels: Tensor, count: int, seed: int) -> Tensor:
    """The indices of `count` examples, drawn at random, as many of every class as there can be.

    Classes differ by one at most, but for those that have fewer examples.
    """
    order = sampled(len(labels), len(labels), seed)
    _, classes, sizes = labels.cpu()[order].unique(return_inverse=True, return_counts=True)
    by_class = classes.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    turn = torch.empty_like(order)
    turn[by_class] = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    return order[turn.argsort(stable=True)[:count]]


@dataclass(frozen=True)
class CountOrShare:
    """A whole number of examples, or a share of them below 1."""

    def check(self, name: str, value: float) -> None:
        """Raise ConfigError for anything else."""
        if number(name, value, at_least=0) >= 1:
            integer(name, value)

    def __str__(self) -> str:
        return "a number, or a share below 1"


HeldOut = Annotated[float, CountOrShare(), "training images held out"]
SplitSeed = Annotated[Whole, "seed of which images these are"]
Side = Annotated[Count, "height and width of images"]
Mean = Annotated[Sequence[float], "of each channel, for pixels from 0 to 1"]
Std = Annotated[Sequence[float], "of each channel, for pixels from 0 to 1"]
Shift = Annotated[Whole, "shifts training images by up to so many pixels"]
Workers = Annotated[Whole, "processes that decode images"]


def stratified(labels: Tensor, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into (rest, chosen), every class in proportion; the same for the same seed.

    `size` is a fraction below 1 or a count. Leftover places go to the classes whose shares were
    cut most. Raises DataError when nothing is left.
    """
    count = round(size * len(labels)) if size < 1 else int(size)
    if count >= len(labels):
        raise DataError(f"dataset.val={size} leaves none of {len(labels)} training examples")
    present, sizes = labels.unique(return_counts=True)
    shares = sizes.double() * count / len(labels)
    quota = shares.floor().long()
    quota[(shares - quota).argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, places in zip(present.tolist(), quota.tolist(), strict=True):
        chosen[order[labels[order] == label][:places]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def triple(name: str, values: object) -> tuple[float, ...]:
    """Check a number per channel and return the numbers as a tuple."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{name}={values!r} is not a list with a number per channel")
    return tuple(number(name, value) for value in values)
