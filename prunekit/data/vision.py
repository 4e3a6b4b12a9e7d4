"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, read from a folder in torchvision's layout.

torchvision itself is used for downloading only: its readers insist on checksums and on unpacked
files.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from prunekit.data.base import HeldOut, Mean, Shift, Std
from prunekit.data.files import damaged, read_idx, read_pickle
from prunekit.data.identity import Files
from prunekit.data.in_memory import Examples, Flip, ImageTensors, Raw
from prunekit.errors import DataError

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class Vision(ImageTensors):
    """A published image set under `root`, fetched with torchvision if `download` is set."""

    root: Annotated[str, "folder of the files"] = "data"
    download: Annotated[bool, "fetches the files where they are not there"] = False
    title: ClassVar[str]
    folder: ClassVar[str]
    size: ClassVar[tuple[int, ...]] = (3, 32, 32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return self.size

    def files(self) -> Files:
        """Download where that is wanted and needed; raises DataError."""
        if self.download and not self.present():
            self._fetch()
        if not self.present():
            raise DataError(
                f"no {self.title} in {self.home.resolve()}; set dataset.root=... to the folder "
                f"that holds it, or dataset.download=true"
            )
        return {path.name: path for path in self.paths()}

    def read(self) -> Raw:
        """Download where that is wanted and needed, then read; raises DataError."""
        self.files()
        return self.parse()

    @property
    def home(self) -> Path:
        """The folder that the files are in."""
        return Path(self.root) / self.folder

    @abstractmethod
    def paths(self) -> list[Path]:
        """The files that the images are in, whether they are there or not."""

    def present(self) -> bool:
        """Whether all files are there."""
        return all(path.is_file() for path in self.paths())

    @abstractmethod
    def parse(self) -> Raw:
        """Read the files."""

    @abstractmethod
    def fetches(self) -> list[Callable[[], object]]:
        """Calls that download the files."""

    def _fetch(self) -> None:
        try:
            for fetch in self.fetches():
                fetch()
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.title} could not be downloaded: {error}; put its files into {self.home}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class MNIST(Vision):
    """Handwritten digits, 60,000 + 10,000 of 28 x 28; a pixel x becomes (x - 128) / 128."""

    mean: Mean = (128 / 255,)
    std: Std = (128 / 255,)
    val: HeldOut = 5000
    title: ClassVar[str] = "MNIST"
    folder: ClassVar[str] = "MNIST/raw"
    size: ClassVar[tuple[int, ...]] = (1, 28, 28)

    def paths(self) -> list[Path]:
        """Four files, gzipped or not."""
        return [self._file(part, kind) for part in ("train", "t10k") for kind in _IDX]

    def parse(self) -> Raw:
        """Training and test images as bytes."""
        return Raw(self._examples("train"), self._examples("t10k"), classes=10)

    def fetches(self) -> list[Callable[[], object]]:
        """torchvision's download of the class of the same name."""
        from torchvision import datasets

        source = getattr(datasets, type(self).__name__)
        return [lambda: source(self.root, download=True)]

    def _file(self, part: str, kind: str) -> Path:
        plain = self.home / f"{part}-{kind}"
        return plain if plain.is_file() else plain.with_name(plain.name + ".gz")

    def _examples(self, part: str) -> Examples:
        images, labels = (torch.from_numpy(read_idx(self._file(part, kind))) for kind in _IDX)
        return _checked(images.unsqueeze(1), labels.long(), 10, self.home)


_IDX = ("images-idx3-ubyte", "labels-idx1-ubyte")


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Pictures of clothes in MNIST's format, 60,000 + 10,000 of 28 x 28, ten classes."""

    title: ClassVar[str] = "Fashion-MNIST"
    folder: ClassVar[str] = "FashionMNIST/raw"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Vision):
    """Ten classes of 32 x 32 photographs, 50,000 + 10,000; shifted by up to 4 and mirrored.

    Mean and std are those of the network-slimming papers. Files of a subset are accepted and
    noted; with `only_exact` it is cut to the images that its array `exact` marks.
    """

    mean: Mean = _CIFAR_MEAN
    std: Std = _CIFAR_STD
    val: HeldOut = 5000
    crop: Shift = 4
    flip: Flip = True
    only_exact: Annotated[bool, "of a subset that marks bit-exact images: these alone"] = False
    title: ClassVar[str] = "CIFAR-10"
    folder: ClassVar[str] = "cifar-10-batches-py"

    def paths(self) -> list[Path]:
        """Six batches."""
        return [self.home / name for name in _CIFAR10_FILES]

    def parse(self) -> Raw:
        """Training and test images as bytes."""
        *parts, test = (self._batch(path) for path in self.paths())
        train = _joined(parts)
        return Raw(train, test, 10, _size_notes(self.title, train, test))

    def fetches(self) -> list[Callable[[], object]]:
        """torchvision's download."""
        from torchvision.datasets import CIFAR10 as source

        return [lambda: source(self.root, download=True)]

    def _batch(self, path: Path) -> Examples:
        examples = _cifar(path, "labels", 10)
        if not self.only_exact:
            return examples
        exact = read_pickle(path).get("exact", ())
        if len(exact) != len(examples.labels):
            raise DataError(f"{path} does not say which images are exact; set only_exact=false")
        return examples[torch.as_tensor(exact) == 1]


_CIFAR10_FILES = (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch")


@dataclass(frozen=True, kw_only=True)
class CIFAR100(Vision):
    """A hundred classes of 32 x 32 photographs, 50,000 + 10,000; shifted by up to 4, mirrored.

    Mean and std are CIFAR-10's, as in the network-slimming papers.
    """

    mean: Mean = _CIFAR_MEAN
    std: Std = _CIFAR_STD
    val: HeldOut = 5000
    crop: Shift = 4
    flip: Flip = True
    title: ClassVar[str] = "CIFAR-100"
    folder: ClassVar[str] = "cifar-100-python"

    def paths(self) -> list[Path]:
        """Two files."""
        return [self.home / name for name in ("train", "test")]

    def parse(self) -> Raw:
        """Training and test images as bytes, fine labels."""
        train, test = (_cifar(path, "fine_labels", 100) for path in self.paths())
        return Raw(train, test, 100, _size_notes(self.title, train, test))

    def fetches(self) -> list[Callable[[], object]]:
        """torchvision's download."""
        from torchvision.datasets import CIFAR100 as source

        return [lambda: source(self.root, download=True)]


@dataclass(frozen=True, kw_only=True)
class SVHN(Vision):
    """House numbers of 32 x 32, 73,257 training images, 531,131 more with `extra`, 26,032 to test.

    No augmentation; mean and std are those of the network-slimming papers.
    """

    mean: Mean = (0.4376821, 0.4437697, 0.47280442)
    std: Std = (0.19803012, 0.20101562, 0.19703614)
    val: HeldOut = 6000
    extra: Annotated[bool, "trains on the 531,131 extra images too"] = False
    title: ClassVar[str] = "SVHN"
    folder: ClassVar[str] = "."

    def paths(self) -> list[Path]:
        """The files that this choice of `extra` needs."""
        return [self.home / f"{part}_32x32.mat" for part in (*self._parts, "test")]

    def parse(self) -> Raw:
        """Training and test images as bytes; the digit 0 is class 0."""
        parts = [self._examples(part) for part in self._parts]
        return Raw(_joined(parts), self._examples("test"), classes=10)

    def fetches(self) -> list[Callable[[], object]]:
        """torchvision's downloads, one per file."""
        from torchvision.datasets import SVHN as source

        return [
            lambda part=part: source(self.root, part, download=True)
            for part in (*self._parts, "test")
        ]

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("train", "extra") if self.extra else ("train",)

    def _examples(self, part: str) -> Examples:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        path = self.home / f"{part}_32x32.mat"
        try:
            content = loadmat(path)
            images = torch.from_numpy(content["X"].transpose(3, 2, 0, 1).copy())
            labels = torch.from_numpy(content["y"].astype(np.int64).reshape(-1) % 10)
        except (MatReadError, ValueError, TypeError, KeyError, OSError, zlib.error) as error:
            raise damaged(path, error) from error
        return _checked(images, labels, 10, path)


def _cifar(path: Path, key: str, classes: int) -> Examples:
    content = read_pickle(path)
    try:
        pixels = np.asarray(content["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = torch.as_tensor(content[key], dtype=torch.long)
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(path, error) from error
    return _checked(torch.from_numpy(pixels.copy()), labels, classes, path)


def _checked(images: torch.Tensor, labels: torch.Tensor, classes: int, path: Path) -> Examples:
    if len(images) != len(labels):
        raise damaged(path, f"{len(images)} images but {len(labels)} labels")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise damaged(path, f"labels are not all in 0 to {classes - 1}")
    return Examples(images, labels)


def _joined(parts: Sequence[Examples]) -> Examples:
    images = torch.cat([part.images for part in parts])
    return Examples(images, torch.cat([part.labels for part in parts]))


def _size_notes(title: str, train: Examples, test: Examples) -> tuple[str, ...]:
    if (len(train.labels), len(test.labels)) == (50000, 10000):
        return ()
    return (
        f"a subset of {title}: {len(train.labels)} training images of 50000, "
        f"{len(test.labels)} test images of 10000",
    )
