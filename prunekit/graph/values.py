"""What flows through a network that is run on labels: a shape, and a label for every entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.graph.recording.nests import leaves_in, tree_map


@dataclass(frozen=True, eq=False)
class LabeledTensor:
    """An activation without its numbers.

    `meta` carries shape and type. `labels` has the same rank and, for every entry, the id of the
    unit it vanishes with; dimensions along which the labels do not change have size one. `source`
    is the path of the parameter or buffer that it is, `constant` the numbers, where they are known.
    """

    meta: Tensor
    labels: Tensor
    source: str | None = None
    constant: Tensor | None = None

    @property
    def varying(self) -> tuple[int, ...]:
        """The dimensions along which labels change."""
        return tuple(dim for dim, size in enumerate(self.labels.shape) if size > 1)

    def full(self) -> Tensor:
        """A label for every entry, as a view that costs no memory."""
        return self.labels.expand(self.meta.shape)

    def along(self, dim: int) -> Tensor:
        """The labels of the slices along `dim`, where nothing changes along the others."""
        return self.labels.expand(
            [self.meta.shape[d] if d == dim else 1 for d in range(self.meta.ndim)]
        ).flatten()


def frozen_tensor(meta: Tensor, constant: Tensor | None = None) -> LabeledTensor:
    """A value of which no part can vanish."""
    return LabeledTensor(meta, torch.zeros([1] * meta.ndim, dtype=torch.long), constant=constant)


def compress(labels: Tensor) -> Tensor:
    """Shrink every dimension along which the labels do not change to size one."""
    if not labels.numel():  # a network may have found nothing
        return labels.new_zeros([1] * labels.ndim)
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    for dim, size in enumerate(labels.shape):
        first = labels.narrow(dim, 0, min(size, 1))
        if size > 1 and bool((labels == first).all()):
            labels = first
    return labels


def spread(labels: Tensor, dim: int, rank: int) -> Tensor:
    """Lay a vector of labels along dimension `dim` of a tensor with `rank` dimensions."""
    return compress(labels.reshape([-1 if d == dim else 1 for d in range(rank)]))


def resize(meta: Tensor, dim: int, size: int) -> Tensor:
    """The same meta tensor, `size` long in dimension `dim`."""
    if meta.shape[dim] == size:
        return meta
    shape = list(meta.shape)
    shape[dim] = size
    return meta.new_empty(shape)


def map_only(result: Any, wrap: Any, *kinds: type) -> Any:
    """Apply `wrap` to every object of these kinds in a nest of tuples, lists and dicts."""
    if isinstance(result, kinds):
        return wrap(result)
    return tree_map(result, lambda leaf: wrap(leaf) if isinstance(leaf, kinds) else leaf)


def values_in(*nests: Any) -> list[LabeledTensor]:
    """All values in nests of tuples, lists, dicts and slices."""
    return leaves_in(nests, LabeledTensor)


def align(values: Sequence[LabeledTensor], rank: int) -> list[tuple[list[int], Tensor]]:
    """Shapes and labels with leading dimensions of size one, as broadcasting sees them."""
    found = []
    for value in values:
        lead = [1] * (rank - value.meta.ndim)
        shape = [*lead, *value.meta.shape]
        found.append((shape, value.labels.reshape([*lead, *value.labels.shape])))
    return found
