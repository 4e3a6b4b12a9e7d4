"""Small runs, and what may happen to their files."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from cli.conftest import Result

SMALL = (
    *("dataset.train=96", "dataset.val=32", "dataset.test=40", "model.widths=[4,6,12]"),
    *("selection=per_layer", "diagnose=false"),
)
STAGES = "pipeline=[pretrain,sparsify,prune,finetune]"


def flip(file: Path, place: int | None = None, bit: int = 0) -> None:
    """Change one bit where the file lies, as a disk would: no new file, every link shows it."""
    content = bytearray(file.read_bytes())
    place = random.Random(len(content)).randrange(len(content)) if place is None else place
    content[place] ^= 1 << bit
    with open(file, "r+b") as stream:
        stream.write(content)


def flip_weights(file: Path) -> None:
    """A bit among the numbers of a file of torch: the middle of its longest entry."""
    import zipfile

    with zipfile.ZipFile(file) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
        start = file.read_bytes().index(archive.read(entry))
    flip(file, start + entry.file_size // 2)


def flip_digit(file: Path) -> None:
    """A bit in the last digit of a text: another number, and all of it still reads."""
    content = file.read_bytes()
    flip(file, max(index for index, byte in enumerate(content) if byte in b"01234567"))


def flip_letter(file: Path) -> None:
    """The highest bit of a byte in the middle: no text any more."""
    flip(file, len(file.read_bytes()) // 2, bit=7)


def files(place: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too, but for locks."""
    found = (path for path in sorted(place.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def networks(place: Path) -> dict[str, bytes]:
    """Every model file below."""
    return {str(f.relative_to(place)): f.read_bytes() for f in sorted(place.rglob("model.pt"))}


def plain(node: object) -> object:
    """Tensors as their type, shape and bytes."""
    if isinstance(node, torch.Tensor):
        return str(node.dtype), tuple(node.shape), node.contiguous().numpy().tobytes()
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


def told(result: Result) -> list[str]:
    """What a command that ended well complained of, line by line."""
    assert result.code == 0, result.err
    return result.err.splitlines()


def refused(result: Result) -> str:
    """The one line with which a command ended."""
    assert result.code == 1, result.out
    (line,) = result.err.splitlines()
    assert line.startswith("prunekit: ")
    return line
