"""Published data sets of photographs in folders, as they are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.base import HeldOut, Mean, PixelShift, Side, Std
from prunekit.data.files import Files, images_under, is_hidden, read_lines
from prunekit.data.folder import ImageFolder
from prunekit.data.folder_batches import Transform
from prunekit.data.listing import Listing, Samples
from prunekit.errors import DataError


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

        crop = v2.RandomCrop(self.image_size)
        return v2.Compose([self._resized(), crop, *self._mirrored(), *self._to_tensor()])

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

    def _unread_folders(self) -> list[str]:
        return []

    def _list(self, part: str) -> Listing:
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
        samples = [(self._image(name), label[name.partition("/")[0]]) for name in images]
        return Listing(samples, classes)

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

        crop = v2.RandomCrop(self.image_size, self.crop)
        return v2.Compose([self._resized(), crop, *self._mirrored(), *self._to_tensor()])

    def plain(self) -> Transform:
        """Return the fixed transform of all other images, which resizes to `image_size`."""
        from torchvision.transforms import v2

        return v2.Compose([self._resized(), *self._to_tensor()])

    def _resized(self) -> Transform:
        from torchvision.transforms import v2

        return v2.Resize((self.image_size, self.image_size), antialias=True)

    def _test_folder(self) -> str:
        return "val"

    def _list(self, part: str) -> Listing:
        classes = sorted(set(self._lines("wnids.txt")))
        return Listing(self._train(classes) if part == "train" else self._val(classes), classes)

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
        images = [f for f in files if is_image_file(f.name) and not is_hidden(f.name)]
        if not images:
            raise DataError(
                f"no images in {folder}; set dataset.root=... to the unpacked tiny-imagenet-200"
            )
        return images

    def _path(self, name: str) -> Path:
        return (Path(self.root) / name).resolve()
