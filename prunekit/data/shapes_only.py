"""No images at all: the shape that a network is traced for, when nothing is to be trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunekit.data.base import Data, Dataset
from prunekit.errors import DataError
from prunekit.schema import Count, Filled


@dataclass(frozen=True)
class NoImages:
    """Batches without a single example; whoever asks for one is told to choose a data set."""

    size: int = 0

    def steps(self, batch: int) -> int:
        """Raises DataError, as everything that needs images does."""
        raise DataError(
            "this needs images and dataset=none has none; choose a data set, for instance "
            "dataset=image_folder dataset.root=photos"
        )

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises DataError."""
        self.steps(batch)
        return iter(())

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises DataError."""
        return self.epoch(batch, None)

    @property
    def labels(self) -> Tensor:
        """Raises DataError."""
        self.steps(1)
        return torch.zeros(0, dtype=torch.long)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raises DataError."""
        return self.epoch(batch, None)


@dataclass(frozen=True, kw_only=True)
class ShapeOnly(Dataset):
    """The `shape` of one example and nothing else: networks can be cut and timed, not evaluated."""

    shape: Annotated[
        Sequence[Count], Filled("[3, 224, 224]"), "channels, height and width of an image"
    ] = (3, 224, 224)

    def identity(self) -> Mapping[str, Any]:
        """Nothing, since there are no images."""
        return {}

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Three empty sets; the number of classes is not known, so it is 0."""
        note = "accuracy was not measured: no data set was given (dataset=none)"
        return Data(NoImages(), NoImages(), NoImages(), 0, tuple(self.shape), (note,))
