"""Union-find on integer ids, in which 0 absorbs every id it meets."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = 0


class Partition:
    """Classes of ids that live and die together; the class of 0 is the class of all that stays.

    The smallest id of a class stands for it, so the order in which ids were made is kept.
    """

    def __init__(self) -> None:
        self._parent = [FIXED]

    def fresh(self, count: int) -> Tensor:
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
                self._parent[max(one, other)] = min(one, other)
                if FIXED in (one, other):
                    lost.append(right if one == FIXED else left)
        return lost

    def freeze(self, ids: Tensor) -> list[int]:
        """Merge the classes of `ids` into the class of 0; returns those that were not in it."""
        lost = [one for one in set(ids.flatten().tolist()) if self._root(one) != FIXED]
        for one in lost:
            self._parent[self._root(one)] = FIXED
        return lost

    def roots(self) -> Tensor:
        """The smallest id of its class, for every id."""
        return torch.tensor([self._root(one) for one in range(len(self._parent))])

    def _root(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one
