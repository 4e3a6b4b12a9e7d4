"""MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN, read from a folder in torchvision's layout.

torchvision itself is used for downloads only, since its readers require checksums and unpacked
files.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from prunekit.data.base import Flip, HeldOut, Mean, PixelShift, Std
from prunekit.data.files import Files, damaged, read_idx, read_pickle
from prunekit.data.in_memory import Examples, ImageTensors, Raw
from prunekit.errors import DataError

_CIFAR_MEAN, _CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True)
class Vision(ImageTensors):
    """A published image set under `root`, which torchvision downloads if `download` is set."""

    root: Annotated[str, "folder of the files"] = "data"
    download: Annotated[bool, "download the files if they are missing"] = False
    title: ClassVar[str]
    folder: ClassVar[str]
    size: ClassVar[tuple[int, ...]] = (3, 32, 32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return self.size

    def files(self) -> Files:
        """Download the files if allowed and necessary; raise DataError where they are missing."""
        if self.download and not self.present():
            self._download()
        if not self.present():
            raise DataError(
                f"no {self.title} in {self.home.resolve()}; set dataset.root=... to the folder "
                f"that holds it, or dataset.download=true"
            )
        return {path.name: path for path in self.paths()}

    def read(self) -> Raw:
        """Download the files if allowed and necessary, then read them; raise DataError."""
        self.files()
        return self.parse()

    @property
    def home(self) -> Path:
        """The folder of the files."""
        return Path(self.root) / self.folder

    @abstractmethod
    def paths(self) -> list[Path]:
        """Return the paths of the files, which may not exist yet."""

    def present(self) -> bool:
        """Return whether all files exist."""
        return all(path.is_file() for path in self.paths())

    @abstractmethod
    def parse(self) -> Raw:
        """Read the files."""

    @abstractmethod
    def downloads(self) -> list[Callable[[], object]]:
        """Return functions that download the files."""

    def _download(self) -> None:
        try:
            for download in self.downloads():
                download()
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{self.title} could not be downloaded: {error}; put its files into {self.home}"
            ) from error


@dataclass(frozen=True, kw_only=True)
class MNIST(Vision):
    """Load 60,000 + 10,000 handwritten digits of 28 x 28; a pixel x becomes (x - 128) / 128."""

    mean: Mean = (128 / 255,)
    std: Std = (128 / 255,)
    val: HeldOut = 5000
    title: ClassVar[str] = "MNIST"
    folder: ClassVar[str] = "MNIST/raw"
    size: ClassVar[tuple[int, ...]] = (1, 28, 28)

    def paths(self) -> list[Path]:
        """Return four files, gzipped or not."""
        return [self._file(part, kind) for part in ("train", "t10k") for kind in _IDX]

    def parse(self) -> Raw:
        """Return training and test images as bytes."""
        return Raw(self._examples("train"), self._examples("t10k"), classes=10)

    def downloads(self) -> list[Callable[[], object]]:
        """Return the download of torchvision's class of the same name."""
        from torchvision import datasets

        return [partial(getattr(datasets, type(self).__name__), self.root, download=True)]

    def _file(self, part: str, kind: str) -> Path:
        plain = self.home / f"{part}-{kind}"
        return plain if plain.is_file() else plain.with_name(plain.name + ".gz")

    def _examples(self, part: str) -> Examples:
        images, labels = (torch.from_numpy(read_idx(self._file(part, kind))) for kind in _IDX)
        return _checked(images.unsqueeze(1), labels.long(), 10, self.home)


_IDX = ("images-idx3-ubyte", "labels-idx1-ubyte")


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(MNIST):
    """Load 60,000 + 10,000 pictures of clothes, in ten classes and in MNIST's format."""

    title: ClassVar[str] = "Fashion-MNIST"
    folder: ClassVar[str] = "FashionMNIST/raw"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Vision):
    """Load 50,000 + 10,000 photographs of 32 x 32 in ten classes, shifted by up to 4 and mirrored.

    Mean and std are those of the network-slimming papers. Files of a subset are accepted with a
    note; `only_exact` restricts it to the images that are marked in its array `exact`.
    """

    mean: Mean = _CIFAR_MEAN
    std: Std = _CIFAR_STD
    val: HeldOut = 5000
    crop: PixelShift = 4
    flip: Flip = True
    only_exact: Annotated[bool, "only the bit-exact images of a subset that marks them"] = False
    title: ClassVar[str] = "CIFAR-10"
    folder: ClassVar[str] = "cifar-10-batches-py"

    def paths(self) -> list[Path]:
        """Return six files."""
        return [self.home / name for name in _CIFAR10_FILES]

    def parse(self) -> Raw:
        """Return training and test images as bytes."""
        *parts, test = (self._batch(path) for path in self.paths())
        train = _joined(parts)
        return Raw(train, test, 10, _size_notes(self.title, train, test))

    def downloads(self) -> list[Callable[[], object]]:
        """Return torchvision's download."""
        from torchvision import datasets

        return [partial(datasets.CIFAR10, self.root, download=True)]

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
    """Load 50,000 + 10,000 photographs of 32 x 32 in a hundred classes, augmented as CIFAR-10.

    Mean and std are those of CIFAR-10, as in the network-slimming papers.
    """

    mean: Mean = _CIFAR_MEAN
    std: Std = _CIFAR_STD
    val: HeldOut = 5000
    crop: PixelShift = 4
    flip: Flip = True
    title: ClassVar[str] = "CIFAR-100"
    folder: ClassVar[str] = "cifar-100-python"

    def paths(self) -> list[Path]:
        """Return two files."""
        return [self.home / name for name in ("train", "test")]

    def parse(self) -> Raw:
        """Return training and test images as bytes, with fine labels."""
        train, test = (_cifar(path, "fine_labels", 100) for path in self.paths())
        return Raw(train, test, 100, _size_notes(self.title, train, test))

    def downloads(self) -> list[Callable[[], object]]:
        """Return torchvision's download."""
        from torchvision import datasets

        return [partial(datasets.CIFAR100, self.root, download=True)]


@dataclass(frozen=True, kw_only=True)
class SVHN(Vision):
    """Load house numbers of 32 x 32: 73,257 + 26,032, and 531,131 more for training with `extra`.

    They are not augmented; mean and std are those of the network-slimming papers.
    """

    mean: Mean = (0.4376821, 0.4437697, 0.47280442)
    std: Std = (0.19803012, 0.20101562, 0.19703614)
    val: HeldOut = 6000
    extra: Annotated[bool, "train on the 531,131 extra images too"] = False
    title: ClassVar[str] = "SVHN"
    folder: ClassVar[str] = "."

    def paths(self) -> list[Path]:
        """Return the files, with or without `extra`."""
        return [self.home / f"{part}_32x32.mat" for part in (*self._parts, "test")]

    def parse(self) -> Raw:
        """Return training and test images as bytes; the digit 0 is class 0."""
        parts = [self._examples(part) for part in self._parts]
        return Raw(_joined(parts), self._examples("test"), classes=10)

    def downloads(self) -> list[Callable[[], object]]:
        """Return torchvision's downloads, one per file."""
        from torchvision import datasets

        parts = (*self._parts, "test")
        return [partial(datasets.SVHN, self.root, part, download=True) for part in parts]

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
