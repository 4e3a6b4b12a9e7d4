"""The interface of data sets: batches of examples, and settings from which they are loaded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import torch
from torch import Tensor

from prunekit.data.files import Files, identity_of_files
from prunekit.errors import ConfigError, DataError
from prunekit.schema import Checked, Count, Whole
from prunekit.validate import integer, number

_COMPARED = 16  # images that distinguish two sets with equal labels
_NOISE = 4  # few examples of noise, since networks without a data set mostly take large images


class Batches(Protocol):
    """A set of examples that can be iterated over any number of times, without state."""

    @property
    def size(self) -> int:
        """The number of examples."""

    def steps(self, batch: int) -> int:
        """Return the number of batches in a shuffled epoch."""

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels in batches of `batch` examples.

        Without a seed they are in order and unchanged, and the last batch may be smaller. With a
        seed they are shuffled and augmented, always alike for the same seed, and a last batch of
        one example is left out, since batch norm cannot train on it.
        """

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield at most `count` unchanged examples in batches, the same ones at every call.

        They are drawn at random, since files are often sorted by class.
        """

    @property
    def labels(self) -> Tensor:
        """The label of every example, in order; no input is read for it."""

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield these examples unchanged, in this order, in batches of `batch`."""


@dataclass(frozen=True, eq=False)
class Data:
    """A loaded data set; `shape` is that of one example, `notes` are sentences for reports.

    `classes` is 0 where the number is unknown, for instance without images. Otherwise labels are
    whole numbers from 0 to `classes` - 1; raises DataError for others.
    """

    train: Batches
    val: Batches
    test: Batches
    classes: int
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("train", "val", "test") if self.classes else ():
            part = getattr(self, name)
            if part.size:
                check_labels(part.labels, self.classes, name)

    @property
    def example(self) -> Tensor:
        """Zeros of the shape (1, *shape), for tracing a network."""
        return torch.zeros(1, *self.shape)

    def inputs(self, count: int) -> Tensor:
        """Return at most `count` unchanged test inputs, or a few of normal noise without any."""
        if self.test.size:
            return next(iter(self.test.epoch(count, None)))[0][:count]
        source = torch.Generator().manual_seed(0)
        return torch.randn(min(count, _NOISE), *self.shape, generator=source)


def check_labels(labels: Tensor, classes: int, part: str) -> None:
    """Raise DataError that names the first label which is no whole number below `classes`."""
    whole = not (labels.is_floating_point() or labels.is_complex()) and labels.dim() == 1
    if not whole:
        raise DataError(
            f"the labels of {part} are {labels.dtype} of the shape {tuple(labels.shape)}; give one "
            f"whole number per example, from 0 to {classes - 1}"
        )
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        index = int(wrong[0])
        raise DataError(
            f"label {int(labels[index])} of {part} example {index} is not in 0 to {classes - 1}; "
            "number the classes from 0, or give the right number of classes"
        )


def images_id(batches: Batches) -> str:
    """Return eight characters that are equal for sets of the same images in any location.

    They are a hash of all labels, and of the mean absolute pixel of a few images, spread evenly.
    """
    indices = torch.linspace(0, batches.size - 1, min(_COMPARED, batches.size)).round().long()
    sizes = [
        f"{float(image.double().abs().mean()):.4g}"
        for inputs, _ in batches.pick(indices, _COMPARED)
        for image in inputs.cpu()
    ]
    text = f"{batches.labels.tolist()} {sizes}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Dataset(Checked, ABC):
    """Settings of a data set: a frozen dataclass whose fields are checked on construction.

    A set that generates its images has a `version`, to be raised whenever it generates others.
    """

    version: ClassVar[str | None] = None
    # settings that earlier versions lacked, with the value at which a set is the same as then
    added: ClassVar[Mapping[str, Any]] = {}

    @property
    @abstractmethod
    def shape(self) -> Sequence[int]:
        """The shape of one example, which is known before anything is read."""

    @abstractmethod
    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Load batches on `device`; `seed` is that of the run. Raises DataError."""

    def files(self) -> Files:
        """Return the files of the images: relative names, and the paths of the files now.

        If there are any, `root` is not part of a run's identity. Raises DataError where files are
        missing.
        """
        return {}

    def decoding(self, files: Files) -> Mapping[str, Any]:
        """Return what else tells runs apart: that some files are now read differently."""
        return {}

    def identity(self) -> Mapping[str, Any] | None:
        """Identify the images without loading them, independently of where the files are.

        Returns None if they cannot be identified, and an empty mapping if the settings suffice.
        """
        files = self.files()
        facts = {**identity_of_files(files), **self.decoding(files)} if files else {}
        facts |= {} if self.version is None else {"version": self.version}
        return facts or None


def shuffled_steps(size: int, batch: int) -> int:
    """Return the number of batches of `size` examples when a last batch of one is left out."""
    full, rest = divmod(size, batch)
    return full + (rest > 1 or (rest == 1 and full == 0))


def sample_indices(size: int, count: int, seed: int = 0) -> Tensor:
    """Draw the indices of `count` of `size` examples, always the same for the same seed."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]


def draw(batches: Batches, count: int, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield at most `count` unchanged examples, others for every seed.

    Seed 0 draws those of `Batches.sample`.
    """
    if seed == 0:
        return batches.sample(count, batch)
    return batches.pick(sample_indices(batches.size, count, seed), batch)


def regrouped(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the same examples in batches of `size`; the last one may be smaller."""
    rest: Tensor | None = None
    for part in parts:
        rest = part if rest is None else torch.cat([rest, part])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def balanced_indices(labels: Tensor, count: int, seed: int) -> Tensor:
    """Draw the indices of `count` examples with classes as balanced as possible.

    Numbers per class differ by at most one, except for classes with too few examples.
    """
    order = sample_indices(len(labels), len(labels), seed)
    _, classes, sizes = labels.cpu()[order].unique(return_inverse=True, return_counts=True)
    by_class = classes.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(order)  # of an example within its class
    rank[by_class] = torch.arange(len(order)) - starts.repeat_interleave(sizes)
    return order[rank.argsort(stable=True)[:count]]


@dataclass(frozen=True)
class CountOrShare:
    """Accept a whole number of examples, or a share of them below 1."""

    def check(self, name: str, value: float) -> None:
        """Raise ConfigError for anything else."""
        if number(name, value, at_least=0) >= 1:
            integer(name, value)

    def __str__(self) -> str:
        return "a number, or a share below 1"


HeldOut = Annotated[float, CountOrShare(), "held-out training images"]
SplitSeed = Annotated[Whole, "seed of the choice of held-out images"]
Side = Annotated[Count, "height and width of images"]
Mean = Annotated[Sequence[float], "mean of each channel, for pixels from 0 to 1"]
Std = Annotated[Sequence[float], "standard deviation of each channel"]
PixelShift = Annotated[Whole, "largest random shift of training images in pixels"]
Flip = Annotated[bool, "mirror half of the training images"]
Workers = Annotated[Whole, "number of processes that decode images"]


def split_by_class(labels: Tensor, size: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into (rest, chosen) with every class in proportion, alike for the same seed.

    `size` is the chosen fraction below 1, or a count. After rounding down, the remaining examples
    come from the classes with the largest remainders. Raises DataError when no rest remains.
    """
    count = round(size * len(labels)) if size < 1 else int(size)
    if count >= len(labels):
        raise DataError(
            f"dataset.val={size} leaves none of {len(labels)} training examples; lower it"
        )
    present, sizes = labels.unique(return_counts=True)
    shares = sizes.double() * count / len(labels)
    quota = shares.floor().long()
    quota[(shares - quota).argsort(descending=True, stable=True)[: count - int(quota.sum())]] += 1
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in zip(present.tolist(), quota.tolist(), strict=True):
        chosen[order[labels[order] == label][:share]] = True
    return (~chosen).nonzero().flatten(), chosen.nonzero().flatten()


def check_per_channel(name: str, values: object) -> tuple[float, ...]:
    """Check that values are numbers, one per channel, and return them as a tuple."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ConfigError(f"{name}={values!r} is not a list with a number per channel")
    return tuple(number(name, value) for value in values)
