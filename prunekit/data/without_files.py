"""Data sets that read no files: batches of the caller, and shapes without images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from prunekit.data.base import Data, Dataset
from prunekit.errors import DataError
from prunekit.schema import Count, Filled

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class FixedBatches:
    """Batches of inputs and labels that are used as they are, without shuffling."""

    batches: Sequence[Pair]

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(len(inputs) for inputs, _ in self.batches)

    def steps(self, batch: int) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def epoch(self, batch: int, seed: int | None) -> Iterator[Pair]:
        """Yield all batches, in order."""
        yield from self.batches

    def sample(self, count: int, batch: int) -> Iterator[Pair]:
        """Yield the first `count` examples, in batches of at most `batch`."""
        for inputs, labels in self.batches:
            for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
                if count <= 0:
                    return
                yield x[:count], y[:count]
                count -= len(x)

    @property
    def labels(self) -> Tensor:
        """The labels of all examples, in order."""
        return torch.cat([labels for _, labels in self.batches])

    def pick(self, indices: Tensor, batch: int) -> Iterator[Pair]:
        """Yield these examples in batches of `batch`."""
        ends = torch.tensor([len(labels) for _, labels in self.batches]).cumsum(0)
        for part in indices.cpu().split(batch):
            pairs = [self._example(index, ends) for index in part]
            if pairs:
                yield torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def _example(self, index: Tensor, ends: Tensor) -> Pair:
        number = int(torch.searchsorted(ends, index, right=True))
        inputs, labels = self.batches[number]
        offset = int(index - ends[number])  # negative: counted from the end of the batch
        return inputs[offset], labels[offset]


def data_from_batches(batches: Iterable[Pair], examples: int) -> Data:
    """Make a data set whose three parts are the first `examples` of (inputs, labels) batches.

    Raises DataError when there are none, or when batches have another form.
    """
    pairs: list[Pair] = []
    count = 0
    for pair in batches:
        if not isinstance(pair, tuple | list) or not _is_pair(pair):
            raise DataError(
                "data must be a prunekit Data or batches of (inputs, labels), two tensors of the "
                f"same length; one batch is a {type(pair).__name__}"
            )
        pairs.append((pair[0], pair[1]))
        count += len(pair[0])
        if count >= examples:
            break
    if not pairs:
        raise DataError(
            "data holds no batch; give an iterable of (inputs, labels) that is not used up"
        )
    fixed = FixedBatches(pairs)
    return Data(fixed, fixed, fixed, 0, tuple(pairs[0][0].shape[1:]))


def _is_pair(pair: Sequence[object]) -> bool:
    tensors = [item for item in pair if isinstance(item, Tensor)]
    return len(pair) == len(tensors) == 2 and len(tensors[0]) == len(tensors[1])


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
