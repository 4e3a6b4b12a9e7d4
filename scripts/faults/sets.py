"""Small sets of images: MNIST's format, and folders of photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def mnist(root: Path, seed: int) -> Path:
    """Write 100 images to train and 40 to test under `root`, drawn by `seed`; return `root`."""
    draw, folder = np.random.default_rng(seed), root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 40)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return root


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write an array of bytes as MNIST does."""
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(head + values.tobytes())


def photographs(root: Path, each: int = 6) -> Path:
    """Write two classes of `each` images of 24 x 24 to train, and two to test; return `root`."""
    draw = np.random.default_rng(0)
    for part, count in (("train", each), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root
