"""Data sets of photographs in folders, which are decoded during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from prunekit.data.base import (
    Data,
    Dataset,
    HeldOut,
    Mean,
    PixelShift,
    Side,
    SplitSeed,
    Std,
    Workers,
    sample_indices,
    shuffled_steps,
    split_by_class,
)
from prunekit.data.files import Files, images_under, read_lines
from prunekit.data.in_memory import Normalize
from prunekit.errors import DataError

Samples = Sequence[tuple[str, int]]  # path and label of every image
Transform = Callable[[Any], Any]  # of torchvision; in the end, an image becomes a tensor


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """Load `root`/train/<class>/<image> for training and `root`/test, or `root`/val, for testing.

    Training images are a random part of 8 to 100 % of the area, resized to `image_size` and
    mirrored half the time. Other images are resized to 8/7 of `image_size`, and the centre is
    cropped. `val` training images are held out. `workers` processes decode; batches do not depend
    on their number.
    """

    root: Annotated[str, "folder of the images"]
    image_size: Side = 224
    mean: Mean = (0.485, 0.456, 0.406)
    std: Std = (0.229, 0.224, 0.225)
    val: HeldOut = 0.02
    split_seed: SplitSeed = 0
    workers: Workers = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        Normalize(self.mean, self.std)

    @property
    def shape(self) -> tuple[int, ...]:
        """Colour images of `image_size` squared."""
        return (3, self.image_size, self.image_size)

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """List the files; images are read when batches are requested."""
        train, classes = self._list_samples("train")
        test, test_classes = self._list_samples(self._test_folder())
        if classes != test_classes:
            name = sorted(set(classes) ^ set(test_classes))[0]
            raise DataError(f"class {name!r} is not in both train and test of {self.root}")
        labels = torch.tensor([label for _, label in train])
        rest, held_out = (
            FolderBatches([train[i] for i in part.tolist()], self, device)
            for part in split_by_class(labels, self.val, self.split_seed)
        )
        tested = FolderBatches(test, self, device)
        return Data(rest, held_out, tested, len(classes), (3, self.image_size, self.image_size))

    def files(self) -> Files:
        """Return all images of both parts."""
        parts = ("train", self._test_folder())
        for part in parts:
            self._folder(part)
        return {
            name: file for part in parts for name, file in images_under(self.root, part).items()
        }

    def augmenting(self) -> Transform:
        """Return the random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomResizedCrop(self.image_size, antialias=True), v2.RandomHorizontalFlip()]
        return v2.Compose([*change, *self._to_tensor()])

    def plain(self) -> Transform:
        """Return the fixed transform of all other images."""
        from torchvision.transforms import v2

        change = [v2.Resize(self._enlarged, antialias=True), v2.CenterCrop(self.image_size)]
        return v2.Compose([*change, *self._to_tensor()])

    @property
    def _enlarged(self) -> int:
        """The side of resized images before they are cropped to `image_size`."""
        return round(self.image_size * 8 / 7)

    def _to_tensor(self) -> list[Transform]:
        from torchvision.transforms import v2

        as_float = v2.ToDtype(torch.float32, scale=True)
        return [v2.ToImage(), as_float, v2.Normalize(list(self.mean), list(self.std))]

    def _test_folder(self) -> str:
        return "test" if (Path(self.root) / "test").is_dir() else "val"

    def _list_samples(self, part: str) -> tuple[Samples, list[str]]:
        from torchvision.datasets import ImageFolder as Listing

        folder = self._folder(part)
        try:
            listing = Listing(str(folder))
        except FileNotFoundError as error:
            raise DataError(f"{folder} holds no images in one folder per class: {error}") from error
        return listing.samples, listing.classes

    def _folder(self, part: str) -> Path:
        folder = Path(self.root) / part
        if not folder.is_dir():
            raise DataError(
                f"no folder {folder.resolve()}; set dataset.root=... to a folder with train/ and "
                "test/ or val/, each with one folder per class"
            )
        return folder


class FolderBatches:
    """Batches of image files, decoded by worker processes."""

    def __init__(self, samples: Samples, settings: ImageFolder, device: torch.device | str) -> None:
        self.samples, self.settings, self.device = samples, settings, torch.device(device)

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.samples)

    def steps(self, batch: int) -> int:
        """Return the number of batches in a shuffled epoch."""
        return shuffled_steps(self.size, batch)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.epoch`."""
        order = torch.arange(self.size)
        if seed is not None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
            order = order[: self.steps(batch) * batch]
        return self._decoded(order, batch, seed)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.sample`."""
        return self.pick(sample_indices(self.size, count), batch)

    @property
    def labels(self) -> Tensor:
        """The class of every image, by its folder."""
        return torch.tensor([label for _, label in self.samples], dtype=torch.long)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.pick`."""
        return self._decoded(indices, batch, None)

    def _decoded(
        self, order: Tensor, batch: int, seed: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for parts in self._loader(order, batch, seed):
                images, labels = (part.to(self.device, non_blocking=True) for part in parts)
                yield images, labels
        except DataError as error:  # its message contains the traceback of the worker process
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error

    def _loader(self, order: Tensor, batch: int, seed: int | None) -> DataLoader:
        transform = self.settings.plain() if seed is None else self.settings.augmenting()
        return DataLoader(
            _Decoded([self.samples[i] for i in order.tolist()], transform, seed),
            batch,
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # so that decoding does not change the global one
        )


class _Decoded(TorchDataset):
    """Decode files to tensors; random changes depend on the seed and the index of an image."""

    def __init__(self, samples: Samples, transform: Transform, seed: int | None) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from torchvision.datasets.folder import pil_loader

        path, label = self.samples[index]
        try:
            image = pil_loader(path)
        except OSError as error:
            raise DataError(f"{path} cannot be decoded: {error}; remove or replace it") from error
        if self.seed is None:
            return self.transform(image), label
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1_000_003 * (index + 1))
            return self.transform(image), label


@dataclass(frozen=True, kw_only=True)
class CUB200(ImageFolder):
    """Load Caltech-UCSD Birds-200-2011 as distributed: 200 classes, 5,994 and 5,794 images.

    The files are `root`/images.txt, train_test_split.txt and images/<class>/<image>. All images are
    resized to a square of 8/7 of `image_size`. Training images are a random crop of `image_size`,
    mirrored half the time; other images are the centre crop. `val` training images are held out.
    """

    val: HeldOut = 0.1

    def files(self) -> Files:
        """Return all images, and the two lists that assign them to training and testing."""
        lists = ("images.txt", "train_test_split.txt")
        for name in lists:
            self._column(name)
        return {**{n: Path(self.root) / n for n in lists}, **images_under(self.root, "images")}

    def augmenting(self) -> Transform:
        """Return the random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomCrop(self.image_size), v2.RandomHorizontalFlip()]
        return v2.Compose([self._resized(), *change, *self._to_tensor()])

    def plain(self) -> Transform:
        """Return the fixed transform of all other images."""
        from torchvision.transforms import v2

        middle = v2.CenterCrop(self.image_size)
        return v2.Compose([self._resized(), middle, *self._to_tensor()])

    def _resized(self) -> Transform:
        from torchvision.transforms import v2

        return v2.Resize((self._enlarged, self._enlarged), antialias=True)

    def _test_folder(self) -> str:
        return "test"

    def _list_samples(self, part: str) -> tuple[Samples, list[str]]:
        names, flags = self._column("images.txt"), self._column("train_test_split.txt")
        if names.keys() != flags.keys():
            raise DataError(
                f"{self.root}: images.txt names {len(names)} images, train_test_split.txt "
                f"{len(flags)}, and not the same; unpack the archive again"
            )
        classes = sorted({name.partition("/")[0] for name in names.values()})
        label = {name: index for index, name in enumerate(classes)}
        flag = "1" if part == "train" else "0"
        images = [name for number, name in names.items() if flags[number] == flag]
        return [(self._image(name), label[name.partition("/")[0]]) for name in images], classes

    def _column(self, name: str) -> dict[str, str]:
        """Read a list of CUB: a number and a word per line."""
        file = Path(self.root) / name
        mend = "set dataset.root=... to the unpacked CUB_200_2011"
        lines = [line.split() for line in read_lines(file, mend)]
        invalid = next((line for line in lines if len(line) != 2), None)
        if invalid is not None:
            raise DataError(f"{file.resolve()}: {' '.join(invalid)!r} is not a number and a word")
        return {number: word for number, word in lines}

    def _image(self, name: str) -> str:
        file = Path(self.root).resolve() / "images" / name
        if not file.is_file():
            raise DataError(f"images.txt names {file}, which is gone; unpack the archive again")
        return str(file)


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(ImageFolder):
    """Load Tiny ImageNet as distributed: 200 classes of 64 x 64 photographs.

    The files are `root`/wnids.txt, train/<class>/images/<image>, val/images/<image> and
    val/val_annotations.txt. The published validation images are the test set, since those in
    `root`/test have no labels; `val` training images are held out. Classes are numbered in
    alphabetical order. Training images are shifted by up to `crop` pixels and mirrored half the
    time.
    """

    image_size: Side = 64
    mean: Mean = (0.4802, 0.4481, 0.3975)
    std: Std = (0.2770, 0.2691, 0.2821)
    crop: PixelShift = 8

    def files(self) -> Files:
        """Return the images of both parts, and the two lists with their classes."""
        lists = ("wnids.txt", "val/val_annotations.txt")
        for name in lists:
            self._lines(name)
        images = {**images_under(self.root, "train"), **images_under(self.root, "val")}
        return {**{name: self._path(name) for name in lists}, **images}

    def augmenting(self) -> Transform:
        """Return the random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomCrop(self.image_size, self.crop), v2.RandomHorizontalFlip()]
        return v2.Compose([self._resized(), *change, *self._to_tensor()])

    def plain(self) -> Transform:
        """Return the fixed transform of all other images, which resizes to `image_size`."""
        from torchvision.transforms import v2

        return v2.Compose([self._resized(), *self._to_tensor()])

    def _resized(self) -> Transform:
        from torchvision.transforms import v2

        return v2.Resize((self.image_size, self.image_size), antialias=True)

    def _test_folder(self) -> str:
        return "val"

    def _list_samples(self, part: str) -> tuple[Samples, list[str]]:
        classes = sorted(set(self._lines("wnids.txt")))
        return (self._train(classes) if part == "train" else self._val(classes)), classes

    def _train(self, classes: Sequence[str]) -> Samples:
        return [
            (str(file), label)
            for label, name in enumerate(classes)
            for file in self._images(f"train/{name}/images")
        ]

    def _val(self, classes: Sequence[str]) -> Samples:
        """Return the annotated images; lines are file, class and a box, separated by tabs."""
        labels = {name: label for label, name in enumerate(classes)}
        files = {file.name: str(file) for file in self._images("val/images")}
        samples = []
        for line in self._lines("val/val_annotations.txt"):
            image, name, *_ = [*line.split("\t"), ""]
            if image not in files or name not in labels:
                lacking = "wnids.txt" if image in files else "val/images"
                raise DataError(
                    f"{self._path('val/val_annotations.txt')}: {image!r} of class {name!r} is not "
                    f"in {lacking}; unpack the archive again"
                )
            samples.append((files[image], labels[name]))
        return samples

    def _lines(self, name: str) -> list[str]:
        return read_lines(
            self._path(name),
            "set dataset.root=... to the unpacked tiny-imagenet-200 (with a folder per class in "
            "val: dataset=image_folder dataset.image_size=64)",
        )

    def _images(self, name: str) -> list[Path]:
        from torchvision.datasets.folder import is_image_file

        folder = self._path(name)
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [file for file in files if is_image_file(file.name)]
        if not images:
            raise DataError(
                f"no images in {folder}; set dataset.root=... to the unpacked tiny-imagenet-200"
            )
        return images

    def _path(self, name: str) -> Path:
        return (Path(self.root) / name).resolve()
