"""Small sets of images in MNIST's format, and the settings that train on one for an epoch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from prunekit.build import build
from prunekit.stages.identity import identify

TINY = (
    "model.widths=[4,6,12]",
    "schedule.pretrain.epochs=1",
    "schedule.sparsify.epochs=1",
    "schedule.finetune.epochs=1",
)
MNIST = ("dataset=mnist", "dataset.val=20", *TINY)
TOYS = ("dataset.train=64", "dataset.val=16", "dataset.test=16", *TINY)


def images(root: Path, seed: int) -> Path:
    """100 images to train and 40 to test under `root`, drawn by `seed`."""
    draw, folder = np.random.default_rng(seed), root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 100), ("t10k", 40)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte", pixels)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    return root


def write_idx(path: Path, values: np.ndarray) -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
    path.write_bytes(head + values.tobytes())


def reports(root: Path) -> dict[str, bytes]:
    """All reports below a directory, as they are on the disk."""
    found = sorted(root.rglob("report.json"))
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


def identity_of(settings, start):
    """What a stage is that reads just these settings."""
    parts = {key: build(settings[key], key) for key in ("dataset", "selection") if key in settings}
    if "selection" in parts:
        parts["selection"] = parts["selection"].resolve_in(start.run)
    return identify(SimpleNamespace(**parts), settings, start)
