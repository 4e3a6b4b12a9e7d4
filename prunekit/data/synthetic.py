"""Toy images that a small network learns within seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.data.base import HeldOut, Side
from prunekit.data.in_memory import Examples, ImageTensors, Raw
from prunekit.schema import Count, NotNegative, Whole


@dataclass(frozen=True, kw_only=True)
class Synthetic(ImageTensors):
    """A smooth random pattern per class plus pixel noise, `train` and `test` images in all.

    The patterns have a standard deviation of 1, the noise of `noise`; `data_seed` draws both.
    `val` of the training images are held out.
    """

    classes: Annotated[Count, "patterns"] = 10
    channels: Annotated[Count, "of each image"] = 1
    image_size: Side = 28
    train: Annotated[Count, "training images, with those held out"] = 640
    test: Annotated[Count, "test images"] = 200
    noise: Annotated[NotNegative, "deviation of the noise, where patterns have 1"] = 1.0
    data_seed: Annotated[Whole, "seed of patterns and noise"] = 0
    val: HeldOut = 128
    version: ClassVar[str] = "1"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, neutral in (("mean", 0.0), ("std", 1.0)):
            object.__setattr__(self, name, (neutral,) * self.channels)

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
