"""Data sets from batches of the caller, for instance those of a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.data.base import Data
from prunekit.errors import DataError

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
