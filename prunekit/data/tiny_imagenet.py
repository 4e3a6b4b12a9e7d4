"""Tiny ImageNet as it is distributed: 200 classes of 64 x 64 photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.base import Mean, Shift, Side, Std
from prunekit.data.files import read_lines
from prunekit.data.folder import ImageFolder, Samples
from prunekit.data.identity import Files, images_under
from prunekit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(ImageFolder):
    """`root`/wnids.txt, train/<class>/images/<image>, val/images/<image>, val/val_annotations.txt.

    The published validation images are the test set, since those in `root`/test have no labels;
    `val` training images are held out. Classes are numbered in alphabetical order. Training images
    are shifted by up to `crop` pixels and mirrored half the time.
    """

    image_size: Side = 64
    mean: Mean = (0.4802, 0.4481, 0.3975)
    std: Std = (0.2770, 0.2691, 0.2821)
    crop: Shift = 8

    def files(self) -> Files:
        """The images of both parts, and the two lists that say what is on them."""
        lists = ("wnids.txt", "val/val_annotations.txt")
        for name in lists:
            self._lines(name)
        images = {**images_under(self.root, "train"), **images_under(self.root, "val")}
        return {**{name: self._place(name) for name in lists}, **images}

    def augmenting(self) -> Callable:
        """The random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomCrop(self.image_size, self.crop), v2.RandomHorizontalFlip()]
        return v2.Compose([self._resized(), *change, *self._to_tensor()])

    def plain(self) -> Callable:
        """The fixed transform of all other images; those of `image_size` stay as they are."""
        from torchvision.transforms import v2

        return v2.Compose([self._resized(), *self._to_tensor()])

    def _resized(self) -> Callable:
        from torchvision.transforms import v2

        return v2.Resize((self.image_size, self.image_size), antialias=True)

    def _test_folder(self) -> str:
        return "val"

    def _listed(self, part: str) -> tuple[Samples, list[str]]:
        classes = sorted(set(self._lines("wnids.txt")))
        return (self._train(classes) if part == "train" else self._val(classes)), classes

    def _train(self, classes: Sequence[str]) -> Samples:
        return [
            (str(file), label)
            for label, name in enumerate(classes)
            for file in self._images(f"train/{name}/images")
        ]

    def _val(self, classes: Sequence[str]) -> Samples:
        """The images that the annotations name; a line is a file, its class and a box, by tabs."""
        labels = {name: label for label, name in enumerate(classes)}
        there = {file.name: str(file) for file in self._images("val/images")}
        found = []
        for line in self._lines("val/val_annotations.txt"):
            image, name, *_ = [*line.split("\t"), ""]
            if image not in there or name not in labels:
                lacking = "wnids.txt" if image in there else "val/images"
                raise DataError(
                    f"{self._place('val/val_annotations.txt')}: {image!r} of class {name!r} is not "
                    f"in {lacking}; unpack the archive again"
                )
            found.append((there[image], labels[name]))
        return found

    def _lines(self, name: str) -> list[str]:
        return read_lines(
            self._place(name),
            "set dataset.root=... to the unpacked tiny-imagenet-200 (with a folder per class in "
            "val: dataset=image_folder dataset.image_size=64)",
        )

    def _images(self, name: str) -> list[Path]:
        from torchvision.datasets.folder import is_image_file

        folder = self._place(name)
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [file for file in found if is_image_file(file.name)]
        if not images:
            raise DataError(
                f"no images in {folder}; set dataset.root=... to the unpacked tiny-imagenet-200"
            )
        return images

    def _place(self, name: str) -> Path:
        return (Path(self.root) / name).resolve()
