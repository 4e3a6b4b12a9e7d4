"""List the images in a folder with one folder per class, and what else lies there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.data.files import IMAGES, is_hidden
from prunekit.errors import DataError, listed

Samples = Sequence[tuple[str, int]]  # path and label of every image


@dataclass(frozen=True)
class Listing:
    """The images of a part, the names of their classes by label, and in words what is left out."""

    samples: Samples
    classes: Sequence[str]
    left_out: Sequence[str] = ()


def list_classes(folder: Path) -> Listing:
    """List a folder with one folder per class; DataError where a class has no images.

    Classes and files are in alphabetical order. Names that begin with a dot are hidden: such
    folders are no classes, such files no images.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    found = {name: _walk(folder / name) for name in names if not is_hidden(name)}
    files = {name: own for name, (own, _) in found.items()}
    misnamed = [os.path.relpath(path, folder.parent) for _, own in found.values() for path in own]
    images = {name: [file for file in own if _is_image(file)] for name, own in files.items()}
    others = {
        name: Counter(_ending(file) for file in own if not _is_image(file))
        for name, own in files.items()
    }
    beside = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    stray = sum(_is_image(name) and not is_hidden(name) for name in beside)
    _refuse_empty(folder, images, others, stray)
    samples = [(file, label) for label, own in enumerate(images.values()) for file in own]
    endings = sorted(sum(others.values(), Counter[str]()).items())
    left_out = [f"{count} {ending} in {folder.name}" for ending, count in endings]
    if stray:
        left_out.append(f"images in {folder.name} itself, outside its folders: {stray}")
    if misnamed:
        left_out.append(
            f"folders in {folder.name} whose names end like images: {listed(sorted(misnamed))}"
        )
    return Listing(samples, [*images], left_out)


def _ending(name: str) -> str:
    return os.path.splitext(name)[1] or "no ending"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _walk(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files below a folder in the order of torchvision, without hidden ones.

    The other paths are those of folders that have names of images.
    """
    found, misnamed = [], []
    for directory, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        misnamed += [os.path.join(directory, name) for name in folders if _is_image(name)]
        found.append((directory, names))
    files = [
        os.path.join(directory, name)
        for directory, names in sorted(found)
        for name in sorted(names)
        if not is_hidden(name)
    ]
    return files, misnamed


def _refuse_empty(
    folder: Path,
    images: Mapping[str, Sequence[str]],
    others: Mapping[str, Counter[str]],
    stray: int,
) -> None:
    """Raise DataError where there is no class, or a class without images."""
    if not any(images.values()):
        beside = f" ({stray} lie beside these folders)" if stray else ""
        raise DataError(
            f"{folder} holds no images in one folder per class{beside}; put the images of each "
            f"class into {folder.name}/<class>/, as {listed(IMAGES, len(IMAGES), ' ')}"
        )
    empty = [name for name, files in images.items() if not files]
    if empty:
        endings = ", ".join(sorted(others[empty[0]]))
        why = f", only files that end in {endings}" if endings else ""
        more = f", and {len(empty) - 1} more such folders" if len(empty) > 1 else ""
        raise DataError(
            f"{folder / empty[0]} holds no images{why}{more}; add images, or remove the folder"
        )
