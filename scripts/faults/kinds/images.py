"""Images that are damaged or of unusual formats, folders that are odd, and workers that die."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.faults.campaign import Fault
from scripts.faults.damage import flip, truncate
from scripts.faults.kinds.inputs import NET
from scripts.faults.results import numbers
from scripts.faults.sets import mnist, photographs
from scripts.faults.small import MNIST
from scripts.faults.trial import Finding, Trial

Harm = Callable[[Path], object]  # of an image, or of the root of a set
_LINE = (
    *("pretrain", "dataset=image_folder", "dataset.root=photos", "dataset.image_size=16"),
    *("dataset.val=2", "model=custom", "model._target_=net.Net", "schedule=smoke"),
    *("runtime.device=cpu", "runtime.threads=1"),
)
_MNIST = ("pretrain", *MNIST)
_OWN = """
import os, signal
from dataclasses import dataclass
from prunekit.data import ImageFolder

class Fatal:
    def __init__(self, act):
        self.act = act
    def __call__(self, image):
        exec(self.act)

@dataclass(frozen=True, kw_only=True)
class Dying(ImageFolder):
    act: str = ""
    part: str = "train"
    def augmenting(self):
        return Fatal(self.act) if self.part == "train" else super().augmenting()
    def plain(self):
        return Fatal(self.act) if self.part == "test" else super().plain()
"""


def faults() -> list[Fault]:
    """Return damaged images, unusual ones, odd folders, damaged files of MNIST, dead workers."""
    return [
        *(
            Fault(
                "images",
                f"{name}, in {part}, {workers} workers",
                partial(_damaged, harm, part, workers),
            )
            for name, harm in _DAMAGES.items()
            for part, workers in (("train", 0), ("test", 1))
        ),
        *(
            Fault("images", f"{name}, as if it were plain", partial(_unusual, write))
            for name, write in _UNUSUAL.items()
        ),
        *(
            Fault("images", f"folders: {name}", partial(_folders, harm))
            for name, harm in _FOLDERS.items()
        ),
        Fault("images", "folders: a hidden folder", _hidden),
        *(Fault("images", f"mnist: {name}", partial(_mnist, harm)) for name, harm in _IDX.items()),
        *(
            Fault("images", f"worker: {name} in {part}", partial(_worker, act, part))
            for name, act in _DEATHS.items()
            for part in ("train", "test")
        ),
    ]


def _damaged(harm: Harm, part: str, workers: int, trial: Trial) -> Finding:
    """The file is named; it is neither left out nor guessed."""
    _prepare(trial)
    file = trial.place / "photos" / part / "cat" / "1.png"
    harm(file)
    ended = trial.run(*_LINE, f"dataset.workers={workers}", "name=a")
    return trial.judge(ended, [f"{part}/cat/1.png", f"{part}/cat"], same=lambda: False)


def _unusual(write: Callable[[np.ndarray, Path], object], trial: Trial) -> Finding:
    """The same picture in another format gives the same weights, or is refused."""
    _prepare(trial)
    runs = []
    file = trial.place / "photos/train/cat/1.png"
    pixels = np.asarray(Image.open(file).convert("L"))
    for name, save in (("plain", _save_plain), ("unusual", write)):
        save(pixels, file)
        runs.append(trial.run(*_LINE, "dataset.workers=0", f"name={name}"))

    def same() -> bool:
        first, second = (numbers(trial.place / "outputs" / name) for name in ("plain", "unusual"))
        return first == second

    return trial.judge(runs[1], ["train/cat/1.png", "train/cat", "of more than 8 bits"], same)


def _folders(harm: Harm, trial: Trial) -> Finding:
    """What is left out is said, or the command is refused."""
    _prepare(trial)
    harm(trial.place / "photos")
    ended = trial.run(*_LINE, "dataset.workers=0", "name=a")
    return trial.judge(ended, ["photos", "dataset"], same=lambda: False)


def _hidden(trial: Trial) -> Finding:
    """A folder whose name begins with a dot is no class: the weights are those without it."""
    _prepare(trial)
    trial.run(*_LINE, "dataset.workers=0", "name=plain")
    shutil.copytree(trial.place / "photos/train/cat", trial.place / "photos/train/.cache")
    ended = trial.run(*_LINE, "dataset.workers=0", "name=a")
    first, second = (numbers(trial.place / "outputs" / name) for name in ("plain", "a"))
    return trial.judge(ended, same=lambda: first == second != {}, refusal=False)


def _mnist(harm: Harm, trial: Trial) -> Finding:
    mnist(trial.place / "data", 0)
    harm(trial.place / "data/MNIST/raw")
    return trial.judge(trial.run(*_MNIST, "name=a"), ["data", "dataset"], same=lambda: False)


def _worker(act: str, part: str, trial: Trial) -> Finding:
    _prepare(trial)
    (trial.place / "own.py").write_text(_OWN)
    more = ("dataset._target_=own.Dying", f"+dataset.part={part}", f'+dataset.act="{act}"')
    ended = trial.run(*_LINE, *more, "dataset.workers=1", "name=a")
    return trial.judge(ended, ["worker", "dataset", "photos", "image"], same=lambda: False)


def _prepare(trial: Trial) -> None:
    photographs(trial.place / "photos")
    (trial.place / "net.py").write_text(NET)


def _save_plain(pixels: np.ndarray, file: Path) -> None:
    Image.fromarray(np.repeat(pixels[..., None], 3, axis=2)).save(file, format="PNG")


def _bomb(file: Path) -> None:
    """Write a png of a few bytes that says it has 60,000 x 60,000 pixels."""
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def _replaced(make: Callable[[Path], object]) -> Harm:
    def harm(file: Path) -> None:
        file.unlink()
        make(file)

    return harm


_DAMAGES: dict[str, Harm] = {
    "emptied": partial(truncate, share=0.0),
    "cut in half": partial(truncate, share=0.5),
    "without its end": lambda file: file.write_bytes(file.read_bytes()[:-60]),
    "a bit of a pixel": lambda file: flip(file, len(file.read_bytes()) // 2),
    "a bit of its head": lambda file: flip(file, 18),
    "a text": lambda file: file.write_text("no image"),
    "html": lambda file: file.write_text("<html><body>404</body></html>"),
    "a bomb": _bomb,
    "a link to nowhere": _replaced(lambda file: file.symlink_to("/nowhere/at/all.png")),
    "a folder": _replaced(lambda file: file.mkdir()),
    "a pipe": _replaced(lambda file: os.mkfifo(file)),
    "an endless device": _replaced(lambda file: file.symlink_to("/dev/zero")),
}
_UNUSUAL: dict[str, Callable[[np.ndarray, Path], object]] = {
    "16 bits": lambda p, f: Image.fromarray(p.astype(np.uint16) * 257).save(f, format="PNG"),
    "32 bits": lambda p, f: Image.fromarray(p.astype(np.int32) * 257).save(f, format="TIFF"),
    "floats": lambda p, f: Image.fromarray(p.astype(np.float32)).save(f, format="TIFF"),
    "grey": lambda p, f: Image.fromarray(p).save(f, format="PNG"),
    "a palette": lambda p, f: Image.fromarray(p).convert("P").save(f, format="PNG"),
    "opaque alpha": lambda p, f: Image.fromarray(p).convert("RGBA").save(f, format="PNG"),
    "grey with alpha": lambda p, f: Image.fromarray(p).convert("LA").save(f, format="PNG"),
    "a gif": lambda p, f: Image.fromarray(p).save(f, format="GIF"),
    "a bmp": lambda p, f: Image.fromarray(p).save(f, format="BMP"),
    "a lossless webp": lambda p, f: (
        Image.fromarray(p).convert("RGB").save(f, format="WEBP", lossless=True)
    ),
    "turned, as exif says": lambda p, f: _turned(p, f),
    "a name in capitals": lambda p, f: (_save_plain(p, f), f.rename(f.with_suffix(".PNG"))),
}


def _turned(pixels: np.ndarray, file: Path) -> None:
    image = Image.fromarray(np.rot90(pixels))
    exif = image.getexif()
    exif[0x0112] = 6  # the viewer turns it clockwise
    image.save(file, format="PNG", exif=exif)


_FOLDERS: dict[str, Harm] = {
    "a class without images": lambda root: (root / "train/eel").mkdir(),
    "a class that test lacks": lambda root: shutil.copytree(root / "train/cat", root / "train/eel"),
    "a class that only test has": lambda root: shutil.copytree(
        root / "test/cat", root / "test/eel"
    ),
    "an image beside the classes": lambda root: shutil.copy(
        root / "train/cat/0.png", root / "train"
    ),
    "images of another ending": lambda root: (root / "train/cat/1.png").rename(
        root / "train/cat/1.raw"
    ),
    "no train": lambda root: shutil.rmtree(root / "train"),
    "no test": lambda root: shutil.rmtree(root / "test"),
    "no classes": lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")],
    "val beside test": lambda root: shutil.copytree(root / "test", root / "val"),
}
_IDX: dict[str, Harm] = {
    "images cut in half": lambda raw: truncate(raw / "train-images-idx3-ubyte", 0.5),
    "labels cut in half": lambda raw: truncate(raw / "train-labels-idx1-ubyte", 0.5),
    "images emptied": lambda raw: truncate(raw / "t10k-images-idx3-ubyte", 0.0),
    "another magic number": lambda raw: flip(raw / "train-images-idx3-ubyte", 2, bit=4),
    "a huge number of images": lambda raw: flip(raw / "train-images-idx3-ubyte", 4, bit=6),
    "a label of 200": lambda raw: _label(raw, 200),
    "fewer labels than images": lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(
        (raw / "t10k-labels-idx1-ubyte").read_bytes()
    ),
    "no labels": lambda raw: (raw / "train-labels-idx1-ubyte").unlink(),
}


def _label(raw: Path, label: int) -> None:
    file = raw / "train-labels-idx1-ubyte"
    content = bytearray(file.read_bytes())
    content[20] = label
    file.write_bytes(content)


_DEATHS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "exits": "os._exit(3)",
    "out of memory": "raise MemoryError",
    "an error": "raise ValueError(0)",
}
