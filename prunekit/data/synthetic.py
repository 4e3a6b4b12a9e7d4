"""Toy images that a small network learns within seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.checks import integer, number
from prunekit.data.tensors import Examples, ImageTensors, Raw


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageTensors):
    """A smooth random pattern per class plus pixel noise, `train` and `test` images in all.

    The patterns have a standard deviation of 1, the noise of `noise`; `data_seed` draws both.
    `val` of the training images are held out.
    """

    classes: int = 10
    channels: int = 1
    image_size: int = 28
    train: int = 640
    test: int = 200
    noise: float = 1.0
    data_seed: int = 0
    val: float = 128
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        for name in ("classes", "channels", "image_size", "train", "test"):
            integer(name, getattr(self, name), at_least=1)
        number("noise", self.noise, at_least=0)
        integer("data_seed", self.data_seed, at_least=0)
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            object.__setattr__(self, name, (neutral,) * self.channels)
        super().__post_init__()

    @property
    def shape(self) -> tuple[int, ...]:
        """`channels` of `image_size` squared."""
        return (self.channels, self.image_size, self.image_size)

    def read(self) -> Raw:
        """Draw the patterns and the images."""
        generator = torch.Generator().manual_seed(self.data_seed)
        patterns = self._patterns(generator)
        train, test = (self._images(patterns, n, generator) for n in (self.train, self.test))
        return Raw(train, test, self.classes)

    def _patterns(self, generator: torch.Generator) -> Tensor:
        coarse = torch.randn(self.classes, self.channels, 4, 4, generator=generator)
        size = (self.image_size, self.image_size)
        smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=False)
        return smooth / smooth.flatten(1).std(dim=1)[:, None, None, None].clamp_min(1e-6)

    def _images(self, patterns: Tensor, count: int, generator: torch.Generator) -> Examples:
        labels = torch.arange(count) % self.classes
        clean = patterns[labels]
        noise = torch.randn(clean.shape, generator=generator)
        return Examples(clean + self.noise * noise, labels)
