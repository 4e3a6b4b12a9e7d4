"""A data set without images, which gives the shape for which a network is traced."""

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
    """Batches without examples, whose methods raise a DataError that names the setting."""

    size: int = 0

    def steps(self, batch: int) -> int:
        """Raise DataError, since there are no images."""
        raise DataError(
            "this needs images and dataset=none has none; choose a data set, for instance "
            "dataset=image_folder dataset.root=photos"
        )

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise DataError."""
        self.steps(batch)
        return iter(())

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise DataError."""
        return self.epoch(batch, None)

    @property
    def labels(self) -> Tensor:
        """Raise DataError."""
        self.steps(1)
        return torch.zeros(0, dtype=torch.long)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Raise DataError."""
        return self.epoch(batch, None)


@dataclass(frozen=True, kw_only=True)
class ShapeOnly(Dataset):
    """Give only the `shape` of an example, so that networks can be cut and timed."""

    shape: Annotated[
        Sequence[Count], Filled("[3, 224, 224]"), "channels, height and width of an image"
    ] = (3, 224, 224)

    def identity(self) -> Mapping[str, Any]:
        """Return an empty mapping, since there are no images."""
        return {}

    def load(self, device: torch.device | str = "cpu", seed: int = 0) -> Data:
        """Return three empty sets; the number of classes is unknown and therefore 0."""
        note = "accuracy was not measured: no data set was given (dataset=none)"
        return Data(NoImages(), NoImages(), NoImages(), 0, tuple(self.shape), (note,))
