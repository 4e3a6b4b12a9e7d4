"""The handwritten digits that scikit-learn brings along: nothing to download."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from prunekit.data.base import HeldOut, Side, stratified
from prunekit.data.tensors import Examples, ImageTensors, Raw

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

    def read(self) -> Raw:
        """Training and test digits as bytes."""
        from sklearn.datasets import load_digits  # takes a second, so only when it is needed

        bunch = load_digits()
        small = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
        size = (self.image_size, self.image_size)
        large = F.interpolate(small, size, mode="bilinear", align_corners=False)
        digits = Examples(large.round().byte(), torch.from_numpy(bunch.target).long())
        train, test = stratified(digits.labels, _TEST, seed=0)
        return Raw(digits[train], digits[test], classes=10)
