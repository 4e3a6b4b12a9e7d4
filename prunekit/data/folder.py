"""Data sets of photographs in folders, which are decoded during training."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch

from prunekit.data.base import (
    Data,
    Dataset,
    Flip,
    HeldOut,
    Mean,
    Side,
    SplitSeed,
    Std,
    Workers,
    split_by_class,
)
from prunekit.data.decoding import count_peculiarities, describe_peculiarities, read_anew
from prunekit.data.files import IMAGES, Files, cached_text, images_under
from prunekit.data.folder_batches import FolderBatches, Transform
from prunekit.data.in_memory import Normalize
from prunekit.data.listing import Listing, list_classes
from prunekit.errors import DataError

log = logging.getLogger(__name__)

_HEADERS = 20_000  # images of a set whose headers are read


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """Load `root`/train/<class>/<image> for training and `root`/test, or `root`/val, for testing.

    Training images are a random part of 8 to 100 % of the area, resized to `image_size` and, with
    `flip`, mirrored half the time. Other images are resized to 8/7 of `image_size`, and the centre
    is cropped. `val` training images are held out. `workers` processes decode; batches do not
    depend on their number. `prunekit.data.decoding` says how files are read. Hidden folders are no
    classes.
    """

    root: Annotated[str, "folder of the images"]
    image_size: Side = 224
    mean: Mean = (0.485, 0.456, 0.406)
    std: Std = (0.229, 0.224, 0.225)
    val: HeldOut = 0.02
    split_seed: SplitSeed = 0
    workers: Workers = 2
    flip: Flip = True
    added: ClassVar[Mapping[str, Any]] = {"flip": True}

    def __post_init__(self) -> None:
        super().__post_init__()
        Normalize(self.mean, self.std)

    @property
    def shape(self) -> tuple[int, ...]:
        """Colour images of `image_size` squared."""
        return (3, self.image_size, self.image_size)

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """List the files and read their headers; images are read when batches are requested.

        The notes say in one line which images are read in a special way, and what is left out.
        """
        train, test = self._list("train"), self._list(self._test_folder())
        self._refuse_other_classes(train.classes, test.classes)
        labels = torch.tensor([label for _, label in train.samples])
        rest, held_out = (
            FolderBatches([train.samples[i] for i in part.tolist()], self, device)
            for part in split_by_class(labels, self.val, self.split_seed)
        )
        tested = FolderBatches(test.samples, self, device)
        notes = self._notes(train, test)
        for note in notes:
            _report_once(note)
        return Data(rest, held_out, tested, len(train.classes), self.shape, notes)

    def files(self) -> Files:
        """Return all images of both parts."""
        parts = ("train", self._test_folder())
        for part in parts:
            self._folder(part)
        return {
            name: file for part in parts for name, file in images_under(self.root, part).items()
        }

    def decoding(self, files: Files) -> Mapping[str, Any]:
        """Mark sets of images that earlier versions did not turn, scale or put on white."""
        images = [str(file) for file in files.values() if str(file).lower().endswith(IMAGES)]
        return {"decoding": "upright, opaque, all bits"} if read_anew(_inspect(images)) else {}

    def augmenting(self) -> Transform:
        """Return the random transform of training images."""
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(self.image_size, antialias=True)
        return v2.Compose([crop, *self._mirrored(), *self._to_tensor()])

    def plain(self) -> Transform:
        """Return the fixed transform of all other images."""
        from torchvision.transforms import v2

        change = [v2.Resize(self._enlarged, antialias=True), v2.CenterCrop(self.image_size)]
        return v2.Compose([*change, *self._to_tensor()])

    @property
    def _enlarged(self) -> int:
        """The side of resized images before they are cropped to `image_size`."""
        return round(self.image_size * 8 / 7)

    def _mirrored(self) -> list[Transform]:
        from torchvision.transforms import v2

        return [v2.RandomHorizontalFlip()] if self.flip else []

    def _to_tensor(self) -> list[Transform]:
        from torchvision.transforms import v2

        as_float = v2.ToDtype(torch.float32, scale=True)
        return [v2.ToImage(), as_float, v2.Normalize(list(self.mean), list(self.std))]

    def _notes(self, train: Listing, test: Listing) -> tuple[str, ...]:
        """Return in one line what is special about these images, and what is left out."""
        files = [file for file, _ in (*train.samples, *test.samples)]
        some = f" (headers of {_HEADERS:,} were read)" if len(files) > _HEADERS else ""
        told = describe_peculiarities(_inspect(files))
        parts = [f"{len(files):,} images{some}: {', '.join(told)}"] if told else []
        left_out = [*train.left_out, *test.left_out, *self._unread_folders()]
        parts += [f"left out: {', '.join(left_out)}"] if left_out else []
        return ("; ".join(parts),) if parts else ()

    def _unread_folders(self) -> list[str]:
        """Return val/ where test/ is the test set, which folders of other tools validate on."""
        if self._test_folder() == "val" or not (Path(self.root) / "val").is_dir():
            return []
        return ["val/, since test/ is there (dataset.val holds training images out)"]

    def _refuse_other_classes(self, train: Sequence[str], test: Sequence[str]) -> None:
        """Raise DataError for a class that has no images to train or to test with."""
        for here, there, lacking in (
            ("train", self._test_folder(), set(train) - set(test)),
            (self._test_folder(), "train", set(test) - set(train)),
        ):
            if lacking:
                more = f", nor are {len(lacking) - 1} more" if len(lacking) > 1 else ""
                raise DataError(
                    f"class {min(lacking)!r} is in {self.root}/{here}, but not in {there}{more}; "
                    f"add a folder with images of it, or remove it from {here}"
                )

    def _test_folder(self) -> str:
        return "test" if (Path(self.root) / "test").is_dir() else "val"

    def _list(self, part: str) -> Listing:
        """List the images of a part; DataError where a class has none."""
        return list_classes(self._folder(part))

    def _folder(self, part: str) -> Path:
        folder = Path(self.root) / part
        if not folder.is_dir():
            raise DataError(
                f"no folder {folder.resolve()}; set dataset.root=... to a folder with train/ and "
                "test/ or val/, each with one folder per class"
            )
        return folder


def _inspect(files: Sequence[str]) -> dict[str, int]:
    """Count the images of every special kind by their headers; cached until a file changes.

    Of many files a sample is read, spread evenly.
    """
    names = sorted(map(os.path.abspath, files))[:: -(-len(files) // _HEADERS) or 1]
    if not names:
        return {}
    counts = cached_text(
        "headers", {n: n for n in names}, lambda: json.dumps(count_peculiarities(names))
    )
    return dict(json.loads(counts))


@cache
def _report_once(note: str) -> None:
    """Log a note at the start of the first stage that meets it; the reports hold it anyway."""
    log.info(f"dataset: {note}")
