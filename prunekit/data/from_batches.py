"""Batches that somebody else has made, from a DataLoader for instance, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.data.base import Data
from prunekit.errors import DataError

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GivenBatches:
    """Inputs and labels that are used as they are, in their order, whatever is asked."""

    batches: Sequence[Pair]

    @property
    def size(self) -> int:
        """The number of examples."""
        return sum(len(inputs) for inputs, _ in self.batches)

    def steps(self, batch: int) -> int:
        """The number of batches that were given."""
        return len(self.batches)

    def epoch(self, batch: int, seed: int | None) -> Iterator[Pair]:
        """All of them."""
        yield from self.batches

    def sample(self, count: int, batch: int) -> Iterator[Pair]:
        """The first `count` examples, in batches of at most the size asked for."""
        for inputs, labels in self.batches:
            for x, y in zip(inputs.split(batch), labels.split(batch), strict=True):
                if count <= 0:
                    return
                yield x[:count], y[:count]
                count -= len(x)

    @property
    def labels(self) -> Tensor:
        """The labels that were given."""
        return torch.cat([labels for _, labels in self.batches])

    def pick(self, indices: Tensor, batch: int) -> Iterator[Pair]:
        """These examples, out of the batches that hold them."""
        ends = torch.tensor([len(labels) for _, labels in self.batches]).cumsum(0)
        for part in indices.cpu().split(batch):
            pairs = [self._example(index, ends) for index in part]
            if pairs:
                yield torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])

    def _example(self, index: Tensor, ends: Tensor) -> Pair:
        place = int(torch.searchsorted(ends, index, right=True))
        inputs, labels = self.batches[place]
        return inputs[int(index - ends[place])], labels[int(index - ends[place])]


def given_data(batches: Iterable[Pair], examples: int) -> Data:
    """The first so many examples of (inputs, labels) batches as every part of a data set.

    Raises DataError when there is none, or when batches are something else.
    """
    taken, count = [], 0
    for pair in batches:
        if not isinstance(pair, tuple | list) or not _is_pair(pair):
            raise DataError(
                "data must be a prunekit Data or batches of (inputs, labels), two tensors of the "
                f"same length; one batch is a {type(pair).__name__}"
            )
        taken.append((pair[0], pair[1]))
        count += len(pair[0])
        if count >= examples:
            break
    if not taken:
        raise DataError(
            "data holds no batch; give an iterable of (inputs, labels) that is not used up"
        )
    given = GivenBatches(taken)
    return Data(given, given, given, 0, tuple(taken[0][0].shape[1:]))


def _is_pair(pair: Sequence[object]) -> bool:
    tensors = [item for item in pair if isinstance(item, Tensor)]
    return len(pair) == len(tensors) == 2 and len(tensors[0]) == len(tensors[1])
