"""Labels, which say which unit every entry of a tensor belongs to, and which units are frozen."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import listed
from prunekit.graph.recording.nests import leaves_in, tree_map

FROZEN = 0  # the label of all entries that cannot be removed


@dataclass(frozen=True, eq=False)
class LabeledTensor:
    """A tensor of a recording without its numbers, but with a label for every entry.

    `meta` carries shape and type. `labels` has the same rank and holds the id of the unit with
    which each entry is removed; dimensions along which labels do not change have size one. `source`
    is the path of a parameter or buffer, `constant` the numbers where they are known.
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
        """Return a label for every entry, as a view that costs no memory."""
        return self.labels.expand(self.meta.shape)

    def along(self, dim: int) -> Tensor:
        """Return the labels of the slices along `dim`; along the others they must not change."""
        return self.labels.expand(
            [self.meta.shape[d] if d == dim else 1 for d in range(self.meta.ndim)]
        ).flatten()


def frozen_tensor(meta: Tensor, constant: Tensor | None = None) -> LabeledTensor:
    """Return a labeled tensor of which nothing can be removed."""
    labels = torch.zeros([1] * meta.ndim, dtype=torch.long)
    return LabeledTensor(meta, labels, constant=constant)


def compress(labels: Tensor) -> Tensor:
    """Shrink every dimension along which the labels do not change to size one."""
    if not labels.numel():  # a detector may have found nothing
        return labels.new_zeros([1] * labels.ndim)
    if labels.numel() == 1:
        return labels
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(dim, 0, 1)
            labels = first if bool((labels == first).all()) else labels
    return labels


def spread(labels: Tensor, dim: int, rank: int) -> Tensor:
    """Lay a vector of labels along dimension `dim` of a tensor with `rank` dimensions."""
    return compress(labels.reshape([-1 if d == dim else 1 for d in range(rank)]))


def resize(meta: Tensor, dim: int, size: int) -> Tensor:
    """Return a meta tensor that is `size` long in dimension `dim`."""
    if meta.shape[dim] == size:
        return meta
    shape = list(meta.shape)
    shape[dim] = size
    return meta.new_empty(shape)


def map_only(nest: Any, change: Callable[[Any], Any], *kinds: type) -> Any:
    """Return a nest in which every leaf of these kinds is changed."""
    if isinstance(nest, kinds):
        return change(nest)
    return tree_map(nest, lambda leaf: change(leaf) if isinstance(leaf, kinds) else leaf)


def values_in(*nests: Any) -> list[LabeledTensor]:
    """Return all labeled tensors in nests, in order."""
    return leaves_in(nests, LabeledTensor)


def align(values: Sequence[LabeledTensor], rank: int) -> list[tuple[list[int], Tensor]]:
    """Return shapes and labels, padded in front to `rank` dimensions as in broadcasting."""
    padded = []
    for value in values:
        lead = [1] * (rank - value.meta.ndim)
        shape = [*lead, *value.meta.shape]
        padded.append((shape, value.labels.reshape([*lead, *value.labels.shape])))
    return padded


def broadcast_shape(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that these shapes broadcast to; raise RuntimeError if there is none.

    torch.broadcast_shapes takes ten times as long, since it may get symbols.
    """
    rank = max(map(len, shapes))
    result = [1] * rank
    for shape in shapes:
        for dim, size in enumerate(shape, rank - len(shape)):
            if size != 1:
                if result[dim] not in (1, size):
                    raise RuntimeError(f"shapes {', '.join(map(str, shapes))} do not broadcast")
                result[dim] = size
    return torch.Size(result)


class Partition:
    """Union-find on labels: labels in one class are removed together, those in class 0 never.

    The smallest id of a class stands for it, so the order in which ids were made is kept.
    """

    def __init__(self) -> None:
        self._parent = [FROZEN]
        self._members: dict[int, list[int]] = {}  # of the class of a root, without the root

    def new_ids(self, count: int) -> Tensor:
        """Make `count` new ids, each in a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def unite(self, a: Tensor, b: Tensor) -> list[int]:
        """Merge the classes of `a[i]` and `b[i]`, which broadcast; return the newly frozen ids."""
        if a is b:
            return []
        shape = broadcast_shape(a.shape, b.shape)
        a, b = a.expand(shape), b.expand(shape)
        differ = a != b
        parent, frozen = self._parent, []
        for left, right in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
            if parent[left] == parent[right]:
                continue
            root, other = self._root(left), self._root(right)
            if root != other:
                frozen += self._merge(root, other)
        return frozen

    def freeze(self, ids: Tensor) -> list[int]:
        """Merge the classes of `ids` into the class of 0; return the newly frozen ids."""
        frozen = []
        for label in set(ids.flatten().tolist()):
            if self._parent[label] != FROZEN:
                frozen += self._merge(FROZEN, self._root(label))
        return frozen

    def roots(self) -> Tensor:
        """Return the smallest id of its class for every id."""
        roots = torch.frombuffer(array("q", self._parent), dtype=torch.long)  # fast for long lists
        while not torch.equal(above := roots[roots], roots):
            roots = above
        return roots

    def _merge(self, root: int, other: int) -> list[int]:
        """Merge two classes, given by their roots; return the newly frozen ids."""
        if root == other:
            return []
        smaller, larger = (root, other) if root < other else (other, root)
        moved = [larger, *self._members.pop(larger, [])]
        self._parent[larger] = smaller
        if smaller == FROZEN:
            return moved
        self._members.setdefault(smaller, []).extend(moved)
        return []

    def _root(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label


class FreezeLog:
    """Keeps the reasons why labels are frozen, and the layers that they belong to.

    `producers` are the layers that created labels, with these labels; `full_size` gives the reason
    for every layer or parameter that keeps its size, `reasons` that for every frozen label.
    """

    def __init__(self) -> None:
        self.producers: dict[str, Tensor] = {}
        self.full_size: dict[str, str] = {}
        self.reasons: dict[int, str] = {}
        self._layers: dict[str, dict[str, None]] = {}  # by sentence
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._names: list[str] = []

    def add_producer(self, name: str, labels: Tensor) -> None:
        """Register a layer with the new labels that it created."""
        self.producers[name] = labels
        self._starts.append(int(labels[0]))
        self._ends.append(self._starts[-1] + len(labels))
        self._names.append(name)

    def explain(self, ids: Iterable[int], reason: str) -> None:
        """Keep the reason why labels are frozen, without a note."""
        self.reasons.update(dict.fromkeys(ids, reason))

    def note(self, ids: Sequence[int], reason: str) -> None:
        """Keep the reason why labels are frozen, with a note on their layers."""
        self.explain(ids, reason)
        self.add_note(f"channels are frozen by {reason}", self._producers_of(ids))

    def add_note(self, sentence: str, names: Iterable[str]) -> None:
        """Add layers to the note with this sentence."""
        layers = dict.fromkeys(names)
        if layers:
            self._layers.setdefault(sentence, {}).update(layers)

    def keep_full_size(self, name: str, reason: str) -> None:
        """Keep the reason why a layer or parameter keeps its size, with a note."""
        self.full_size[name] = reason
        self.add_note(f"{reason}, keeps its size", [name])

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every reason, with the layers that it is about."""
        return tuple(f"{listed([*names])}: {text}" for text, names in self._layers.items())

    def _producers_of(self, ids: Iterable[int]) -> list[str]:
        names: dict[str, None] = {}
        end, name = 0, ""
        for label in sorted(set(ids) - {FROZEN}):
            if label >= end:
                position = bisect_right(self._starts, label) - 1
                name = self._names[position] if position >= 0 else ""
                end = self._ends[position] if name else 0
            if label < end:
                names[name] = None
        return [*names]
