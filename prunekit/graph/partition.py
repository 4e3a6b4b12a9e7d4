"""Union-find on integer ids, in which 0 absorbs every id it meets."""

from __future__ import annotations

import torch
from torch import Tensor

FROZEN = 0


class Partition:
    """Classes of ids that live and die together; the class of 0 is the class of all that stays.

    The smallest id of a class stands for it, so the order in which ids were made is kept.
    """

    def __init__(self) -> None:
        self._parent = [FROZEN]
        self._others: dict[int, list[int]] = {}  # what else is in the class of a root

    def new_ids(self, count: int) -> Tensor:
        """Make `count` new ids, each in a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def unite(self, a: Tensor, b: Tensor) -> list[int]:
        """Merge the classes of `a[i]` and `b[i]`, after broadcasting; returns ids fixed by that."""
        if a is b:
            return []
        a, b = torch.broadcast_tensors(a, b)
        differ = a != b
        lost = []
        for left, right in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
            one, other = self._root(left), self._root(right)
            if one != other:
                lost += self._merge(one, other)
        return lost

    def freeze(self, ids: Tensor) -> list[int]:
        """Merge the classes of `ids` into the class of 0; returns all that was not in it."""
        lost = []
        for one in set(ids.flatten().tolist()):
            lost += self._merge(FROZEN, self._root(one))
        return lost

    def roots(self) -> Tensor:
        """The smallest id of its class, for every id."""
        roots = torch.tensor(self._parent)
        while not torch.equal(above := roots[roots], roots):
            roots = above
        return roots

    def _merge(self, one: int, other: int) -> list[int]:
        """Merge two classes, given by their roots; returns the ids that are fixed by that."""
        if one == other:
            return []
        kept, gone = (one, other) if one < other else (other, one)
        moved = [gone, *self._others.pop(gone, [])]
        self._parent[gone] = kept
        if kept == FROZEN:
            return moved
        self._others.setdefault(kept, []).extend(moved)
        return []

    def _root(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one
