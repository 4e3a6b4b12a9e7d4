"""Photographs in folders, one per class, decoded while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from prunekit.data.base import (
    Data,
    Dataset,
    HeldOut,
    Mean,
    Side,
    SplitSeed,
    Std,
    Workers,
    sampled,
    shuffled_steps,
    stratified,
)
from prunekit.data.identity import Files, images_under
from prunekit.data.in_memory import Normalize
from prunekit.errors import DataError

Samples = Sequence[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """`root`/train/<class>/<image> to train, `root`/test or `root`/val, laid out alike, to test.

    Training images: a random part of 8 to 100 % resized to `image_size`, mirrored half the time.
    Other images: resized to 8/7 of `image_size`, middle cut out. `val` training images are held
    out. `workers` processes decode; batches do not depend on their number.
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
        """List the files; the images are read when they are needed."""
        train, classes = self._listed("train")
        test, tested = self._listed(self._test_folder())
        if classes != tested:
            strange = sorted(set(classes) ^ set(tested))[0]
            raise DataError(f"class {strange!r} is not in both train and test of {self.root}")
        labels = torch.tensor([label for _, label in train])
        rest, held = (
            [train[i] for i in part.tolist()]
            for part in stratified(labels, self.val, self.split_seed)
        )
        batches = [FolderBatches(part, self, device) for part in (rest, held, test)]
        return Data(*batches, len(classes), (3, self.image_size, self.image_size))

    def files(self) -> Files:
        """All images of both parts."""
        parts = ("train", self._test_folder())
        for part in parts:
            self._folder(part)
        return {
            name: file for part in parts for name, file in images_under(self.root, part).items()
        }

    def augmenting(self) -> Callable:
        """The random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomResizedCrop(self.image_size, antialias=True), v2.RandomHorizontalFlip()]
        return v2.Compose([*change, *self._to_tensor()])

    def plain(self) -> Callable:
        """The fixed transform of all other images."""
        from torchvision.transforms import v2

        change = [v2.Resize(self._enlarged, antialias=True), v2.CenterCrop(self.image_size)]
        return v2.Compose([*change, *self._to_tensor()])

    @property
    def _enlarged(self) -> int:
        """The side that images have before a part of `image_size` is cut out."""
        return round(self.image_size * 8 / 7)

    def _to_tensor(self) -> list[Callable]:
        from torchvision.transforms import v2

        as_float = v2.ToDtype(torch.float32, scale=True)
        return [v2.ToImage(), as_float, v2.Normalize(list(self.mean), list(self.std))]

    def _test_folder(self) -> str:
        return "test" if (Path(self.root) / "test").is_dir() else "val"

    def _listed(self, part: str) -> tuple[Samples, list[str]]:
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
        """The number of batches in a shuffled epoch."""
        return shuffled_steps(self.size, batch)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.epoch`."""
        order = torch.arange(self.size)
        if seed is not None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
            order = order[: self.steps(batch) * batch]
        return self._decoded(order, batch, seed)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.sample`."""
        return self.pick(sampled(self.size, count), batch)

    @property
    def labels(self) -> Tensor:
        """The class of every image, by its folder."""
        return torch.tensor([label for _, label in self.samples], dtype=torch.long)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Float images and labels; see `Batches.pick`."""
        return self._decoded(indices, batch, None)

    def _decoded(
        self, order: Tensor, batch: int, seed: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for parts in self._loader(order, batch, seed):
                images, labels = (part.to(self.device, non_blocking=True) for part in parts)
                yield images, labels
        except DataError as error:  # a worker process wraps it into its traceback
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error

    def _loader(self, order: Tensor, batch: int, seed: int | None) -> DataLoader:
        transform = self.settings.plain() if seed is None else self.settings.augmenting()
        return DataLoader(
            _Decoded([self.samples[i] for i in order.tolist()], transform, seed),
            batch,
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # its own, so that decoding leaves the global one alone
        )


class _Decoded(TorchDataset):
    """Files as tensors, each changed with random numbers of its own."""

    def __init__(self, samples: Samples, transform: Callable, seed: int | None) -> None:
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
