"""The handwritten digits that scikit-learn brings along: nothing to download."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from prunekit.data.base import HeldOut, Side, stratified
from prunekit.data.identity import Files
from prunekit.data.in_memory import Examples, ImageTensors, Raw

_FILE = "digits.csv.gz"
_TEST = 360  # of 1,797 images, always the same ones


@dataclass(frozen=True, kw_only=True)
class Digits(ImageTensors):
    """1,797 digits of 8 x 8 pixels, enlarged to `image_size`; 360 of them are the test set."""

    image_size: Side = 28
    val: HeldOut = 180

    @property
    def shape(self) -> tuple[int, ...]:
        """One channel of `image_size` squared."""
        return (1, self.image_size, self.image_size)

    def files(self) -> Files:
        """The one file of scikit-learn."""
        return {_FILE: _place()}

    def read(self) -> Raw:
        """Training and test digits as bytes."""
        table = torch.from_numpy(_table())
        small = table[:, :64].view(-1, 1, 8, 8).float() * (255 / 16)
        size = (self.image_size, self.image_size)
        large = F.interpolate(small, size, mode="bilinear", align_corners=False)
        digits = Examples(large.round().byte(), table[:, 64].long())
        train, test = stratified(digits.labels, _TEST, seed=0)
        return Raw(digits[train], digits[test], classes=10)


def _table() -> np.ndarray:
    """A row an image: 64 pixels from 0 to 16, then the label.

    The file is read where scikit-learn keeps it, because to import scikit-learn takes a second.
    """
    file = _place()
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


def _place() -> Path:
    """Where scikit-learn keeps the file, found without importing it."""
    found = importlib.util.find_spec("sklearn")
    package = Path(found.origin).parent if found and found.origin else Path()
    return package / "datasets" / "data" / _FILE
