"""Bytes of files that change where they lie, and all files of a place as bytes."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path


def flip(file: Path, place: int | None = None, bit: int = 0) -> None:
    """Change one bit where the file lies, as a disk would: no new file, every link shows it."""
    content = bytearray(file.read_bytes())
    place = random.Random(len(content)).randrange(len(content)) if place is None else place
    content[place] ^= 1 << bit
    with open(file, "r+b") as stream:
        stream.write(content)


def flip_weights(file: Path) -> None:
    """Change a bit among the numbers of a file of torch: the middle of its longest entry."""
    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        start = file.read_bytes().index(archive.read(entry))
    flip(file, start + entry.file_size // 2)


def flip_digit(file: Path) -> None:
    """Change the last digit of a text: it is another number, and all of it still reads."""
    content = file.read_bytes()
    flip(file, max(index for index, byte in enumerate(content) if byte in b"01234567"))


def flip_letter(file: Path) -> None:
    """Set the highest bit of a byte in the middle, so that the file is no text any more."""
    flip(file, len(file.read_bytes()) // 2, bit=7)


def truncate(file: Path, share: float) -> None:
    """Cut the file off after a share of its bytes, at least one byte before its end."""
    content = file.read_bytes()
    file.write_bytes(content[: min(int(share * len(content)), len(content) - 1)])


def files(place: Path) -> dict[str, bytes]:
    """Return every file below, hidden ones too, but no locks."""
    found = (path for path in sorted(place.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def networks(place: Path) -> dict[str, bytes]:
    """Return every model file below."""
    return {str(f.relative_to(place)): f.read_bytes() for f in sorted(place.rglob("model.pt"))}
