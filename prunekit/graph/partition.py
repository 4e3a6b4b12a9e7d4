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

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Merge the classes of `a[i]` and `b[i]`, after broadcasting."""
        a, b = torch.broadcast_tensors(a, b)
        differ = a != b
        for left, right in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
            self._merge(self._root(left), self._root(right))

    def freeze(self, ids: Tensor) -> bool:
        """Merge the classes of `ids` into the class of 0, and say whether that changed anything."""
        roots = {self._root(one) for one in set(ids.flatten().tolist())} - {FIXED}
        for root in roots:
            self._parent[root] = FIXED
        return bool(roots)

    def roots(self) -> Tensor:
        """The smallest id of its class, for every id."""
        return torch.tensor([self._root(one) for one in range(len(self._parent))])

    def _merge(self, a: int, b: int) -> None:
        if a != b:
            self._parent[max(a, b)] = min(a, b)

    def _root(self, one: int) -> int:
        parent = self._parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one
