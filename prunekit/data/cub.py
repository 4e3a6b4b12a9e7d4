"""Caltech-UCSD Birds-200-2011 as it is distributed: photographs of 200 kinds of birds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.base import HeldOut
from prunekit.data.files import read_lines
from prunekit.data.folder import ImageFolder, Samples
from prunekit.data.identity import Files, images_under
from prunekit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CUB200(ImageFolder):
    """`root`/images.txt, train_test_split.txt and images/<class>/<image>: 5,994 and 5,794 images.

    All images are resized to 8/7 of `image_size` squared, whatever their aspect. Training images: a
    random square of `image_size`, mirrored half the time; other images: the middle. `val` training
    images are held out.
    """

    val: HeldOut = 0.1

    def files(self) -> Files:
        """All images, and the two lists that say what they are for."""
        lists = ("images.txt", "train_test_split.txt")
        for name in lists:
            self._column(name)
        return {**{n: Path(self.root) / n for n in lists}, **images_under(self.root, "images")}

    def augmenting(self) -> Callable:
        """The random transform of training images."""
        from torchvision.transforms import v2

        change = [v2.RandomCrop(self.image_size), v2.RandomHorizontalFlip()]
        return v2.Compose([self._resized(), *change, *self._to_tensor()])

    def plain(self) -> Callable:
        """The fixed transform of all other images."""
        from torchvision.transforms import v2

        middle = v2.CenterCrop(self.image_size)
        return v2.Compose([self._resized(), middle, *self._to_tensor()])

    def _resized(self) -> Callable:
        from torchvision.transforms import v2

        return v2.Resize((self._enlarged, self._enlarged), antialias=True)

    def _test_folder(self) -> str:
        return "test"

    def _listed(self, part: str) -> tuple[Samples, list[str]]:
        names, trained = self._column("images.txt"), self._column("train_test_split.txt")
        if names.keys() != trained.keys():
            raise DataError(
                f"{self.root}: images.txt names {len(names)} images, train_test_split.txt "
                f"{len(trained)}, and not the same; unpack the archive again"
            )
        classes = sorted({name.partition("/")[0] for name in names.values()})
        label = {name: index for index, name in enumerate(classes)}
        wanted = "1" if part == "train" else "0"
        chosen = [name for number, name in names.items() if trained[number] == wanted]
        return [(self._image(name), label[name.partition("/")[0]]) for name in chosen], classes

    def _column(self, name: str) -> dict[str, str]:
        """The number of an image, and what the file says of it."""
        place = Path(self.root) / name
        mend = "set dataset.root=... to the unpacked CUB_200_2011"
        lines = [line.split() for line in read_lines(place, mend)]
        odd = next((line for line in lines if len(line) != 2), None)
        if odd is not None:
            raise DataError(f"{place.resolve()}: {' '.join(odd)!r} is not a number and a word")
        return dict(lines)

    def _image(self, name: str) -> str:
        file = Path(self.root).resolve() / "images" / name
        if not file.is_file():
            raise DataError(f"images.txt names {file}, which is gone; unpack the archive again")
        return str(file)
