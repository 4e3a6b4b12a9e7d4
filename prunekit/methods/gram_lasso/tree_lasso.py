"""The tree-guided group lasso: columns that a dendrogram joins shrink together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.smoothed import StructuredPenalty
from prunekit.penalties.base import Penalty
from prunekit.schema import NotNegative
from prunekit.validate import choice, integer, number

Array = np.ndarray
TINY = 1e-300
WIDTH = 1e-10  # of the bracket of a dual norm, relative to it
EXCESS = 1e-3  # or relative to its excess over what is asked for


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree, or several, whose leaves are the columns of a matrix.

    Nodes 0 .. leaves - 1 are the columns; node leaves + i has the children `children[i]`, all with
    smaller numbers. `separate` (inner nodes, double) is s of Liu et al. eq. 7: the weight of
    selecting each child by itself; 1 - s is that of selecting all columns below together.
    """

    leaves: int
    children: tuple[tuple[int, ...], ...]
    separate: Tensor

    def __post_init__(self) -> None:
        integer("leaves", self.leaves, at_least=1)
        below = [child for group in self.children for child in group]
        if len(set(below)) < len(below):
            raise ConfigError("a node of the tree has two parents; name every child once")
        for node, group in enumerate(self.children, self.leaves):
            if not group or not all(0 <= child < node for child in group):
                raise ConfigError(f"children {group} of node {node} must be nodes before it")
        if self.separate.shape != (len(self.children),):
            raise ConfigError(f"{len(self.children)} inner nodes need as many weights `separate`")
        if not bool(((self.separate >= 0) & (self.separate <= 1)).all()):
            raise ConfigError("weights `separate` of a tree must lie between 0 and 1")

    @classmethod
    def linkage(
        cls, similarity: Tensor, method: str = "average", cut: float | None = None, floor: float = 0
    ) -> Tree:
        """The dendrogram of 1 - similarity, s being heights as shares of the root's.

        Nodes above `cut` of the root's height are not penalised (s = 1). `floor` is the least s:
        near copies have heights of almost 0, which leaves their leaves no weight at all.
        """
        from scipy.cluster.hierarchy import linkage  # half a second, and few runs need a tree

        choice("method", method, ("single", "complete", "average"))
        number("floor", floor, at_least=0, at_most=1)
        distance, count = _distances(similarity), len(similarity)
        merges = linkage(distance, method) if count > 1 else ()
        pairs = tuple((int(first), int(second)) for first, second, *_ in merges)
        heights = torch.tensor([float(merge[2]) for merge in merges], dtype=torch.float64)
        share = heights / heights.amax().clamp_min(1e-12) if count > 1 else heights
        separate = share.clamp_min(floor)
        if cut is not None:
            separate = torch.where(share > number("cut", cut, above=0, at_most=1), 1.0, separate)
        return cls(count, pairs, separate)

    @cached_property
    def parents(self) -> Tensor:
        """The parent of every node; a root has the number that no node has, `len(parents)`."""
        size = self.leaves + len(self.children)
        parents = torch.full((size,), size)
        for node, group in enumerate(self.children, self.leaves):
            parents[list(group)] = node
        return parents

    @cached_property
    def weights(self) -> Tensor:
        """w of Liu et al. eq. 7 for every node; along each path from a leaf they sum to one."""
        share = torch.cat([torch.ones(self.leaves, dtype=torch.float64), self.separate.double()])
        above = torch.ones(len(share) + 1, dtype=torch.float64)  # products of s over ancestors
        for node in range(len(share) - 1, -1, -1):
            parent = int(self.parents[node])
            if parent < len(share):
                above[node] = above[parent] * share[parent]
        alone = 1 - share
        alone[: self.leaves] = 1
        return alone * above[:-1]

    def members(self, node: int) -> list[int]:
        """The columns below a node, in order."""
        if node < self.leaves:
            return [node]
        below = (self.members(child) for child in self.children[node - self.leaves])
        return sorted(column for group in below for column in group)

    @cached_property
    def levels(self) -> Levels:
        """The inner nodes sorted for work in batches."""
        return Levels.of(self)


def _distances(similarity: Tensor) -> object:
    """1 - similarity above the diagonal, not below 0, as SciPy takes it."""
    count = len(similarity)
    if similarity.shape != (count, count) or not bool(similarity.isfinite().all()):
        raise ConfigError(
            f"similarities of shape {tuple(similarity.shape)} must be square and finite; leave "
            "dead channels out or set them to 0"
        )
    first, second = torch.triu_indices(count, count, 1)
    return (1 - similarity.double().cpu()[first, second]).clamp_min(0).numpy()


@dataclass(frozen=True, eq=False)
class Levels:
    """Nodes in slots: leaves, then inner nodes by their height in steps; one batch a level.

    Work goes over (slots, rows) matrices with a last slot that stays zero. Children are padded to
    one number a level by that slot. It is done in NumPy: a dendrogram of 512 leaves has some 90
    levels, most with a node or two, and small calls cost torch several times as much.
    """

    order: Array  # the node in each slot
    spans: tuple[tuple[int, int], ...]  # slots from, to of each level above the leaves
    kids: tuple[Array, ...]  # (most children, nodes of the level), slots
    parents: Array  # the slot of each slot's parent; the last slot for roots

    @classmethod
    def of(cls, tree: Tree) -> Levels:
        """Heights are the longest ways to a leaf, so that children come in earlier levels."""
        height = [0] * tree.leaves
        for group in tree.children:
            height.append(1 + max(height[child] for child in group))
        order = sorted(range(len(height)), key=height.__getitem__)
        slot = [0] * len(order) + [len(order)]
        for at, node in enumerate(order):
            slot[node] = at
        spans, kids, start = [], [], tree.leaves
        while start < len(order):
            nodes = [node for node in order[start:] if height[node] == height[order[start]]]
            groups = [tree.children[node - tree.leaves] for node in nodes]
            most = max(map(len, groups))
            padded = [[slot[c] for c in g] + [len(order)] * (most - len(g)) for g in groups]
            spans.append((start, start + len(nodes)))
            kids.append(np.array(padded).T)
            start += len(nodes)
        parents = np.array([slot[int(tree.parents[node])] for node in order])
        return cls(np.array(order), tuple(spans), tuple(kids), parents)

    def climb(self, leaves: Array, thresholds: Array | None = None) -> tuple[Array, Array]:
        """Squared norms of all groups from magnitudes of leaves (columns, rows), and factors.

        With `thresholds` (slots, 1 or rows) every group is shortened by its own after its children
        were: shortening scales a group, so that its norm says all that its parent needs. Norms are
        those after that; factors are what the groups were scaled by, 1 for leaves and roots' slot.
        """
        square = np.zeros((len(self.order) + 1, leaves.shape[1]))
        np.multiply(leaves, leaves, out=square[: len(leaves)])
        factor = np.empty_like(square)
        factor[: len(leaves)] = factor[-1] = 1
        for (start, stop), kids in zip(self.spans, self.kids, strict=True):
            total = square[kids[0]]
            for more in kids[1:]:
                total += square[more]
            if thresholds is not None:
                norm = np.sqrt(total, out=total)
                short = norm - thresholds[start:stop]
                np.maximum(short, 0, out=short)
                np.maximum(norm, TINY, out=norm)
                np.divide(short, norm, out=factor[start:stop])
                total = np.multiply(short, short, out=short)
            square[start:stop] = total
        return square[:-1], factor

    def descend(self, start: Array, join: np.ufunc) -> Array:
        """Joins of the values of all strict ancestors of leaves; `start` is (slots + 1, rows).

        The last row of `start` must be what joins with nothing.
        """
        total = start.copy()
        for first, stop in reversed(self.spans):
            here = total[first:stop]
            join(here, total[self.parents[first:stop]], out=here)
        leaves = self.spans[0][0] if self.spans else len(self.order)
        return total[self.parents[:leaves]]


@dataclass(frozen=True, eq=False)
class TreeLasso(StructuredPenalty):
    """sum_k sum_v w_v |beta_{k, G_v}|_2 lam over rows k and nodes v of a tree (Liu et al. eq. 6).

    Rows of beta are input channels, columns the leaves. With `mix` leaves weigh one and inner nodes
    `mix` times their weights. `entries` is what stands for lam times the leaves' part. The prox is
    exact (Jenatton et al. 2011: leaves first, then groups, children before parents) for l1 entries;
    for others it is the same composition, whose fixed points are stationary, not more.
    """

    tree: Tree
    mix: Annotated[NotNegative | None, "weight of inner nodes; null: as published"] = None
    offers: ClassVar[frozenset[str]] = frozenset({"prox", "subgradient", "smoothing"})

    @cached_property
    def weights(self) -> Tensor:
        """The weight of every node of the tree, in its order."""
        if self.mix is None:
            return self.tree.weights
        inner = self.tree.weights[self.tree.leaves :] * self.mix
        return torch.cat([torch.ones(self.tree.leaves, dtype=torch.float64), inner])

    @cached_property
    def slots(self) -> Array:
        """The weights in the order of the tree's levels, (slots, 1)."""
        return self.weights.numpy()[self.tree.levels.order][:, None]

    def magnitudes(self, rows: Tensor) -> Array:
        """What the groups are made of, (columns, rows): sizes of entries."""
        return np.abs(_array(rows).T, order="C")

    def value(self, rows: Tensor) -> Tensor:
        """The sum over rows and nodes, a scalar tensor."""
        size = self.magnitudes(rows)
        square, _ = self.tree.levels.climb(size)
        inner = (np.sqrt(square) * self.slots)[len(size) :].sum() * self.lam
        leaves = self.single.phi(torch.from_numpy(size)).numpy() * self.slots[: len(size)]
        return torch.tensor(inner + leaves.sum(), dtype=torch.float64)

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Leaves are shrunk by the step times their weights, then groups by steps of the tree."""
        number("step", step, above=0)
        size = self.magnitudes(rows)
        left = self._leaves(size, step)
        _, factor = self.tree.levels.climb(left, step * self.lam * self.slots)
        left *= self.tree.levels.descend(factor, np.multiply)
        return self._scaled(rows, left / np.maximum(size, TINY))

    def _leaves(self, size: Array, step: float) -> Array:
        """The leaves' own prox; a leaf without weight stays as it is."""
        weights = self.slots[: len(size)]
        if self.convex:
            return np.maximum(size - step * self.lam * weights, 0)
        left = size.copy()
        for weight in np.unique(weights[weights > 0]).tolist():
            same = weights[:, 0] == weight
            chosen = torch.from_numpy(size[same])
            left[same] = self.single.shrink(chosen.flatten(), step * weight).view_as(chosen)
        return left

    def _scaled(self, rows: Tensor, scale: Array) -> Tensor:
        """Entries times a factor of their magnitude, (columns, rows or 1)."""
        return (rows.double() * torch.from_numpy(scale).T.to(rows.device)).to(rows.dtype)

    def subgradient(self, rows: Tensor) -> Tensor:
        """Zero in groups that are zero."""
        size = self.magnitudes(rows)
        safe = np.maximum(size, TINY)
        own = self.single.slope(torch.from_numpy(safe)).numpy() / safe * self.slots[: len(size)]
        pull = self._pull(size, lambda norm, w: np.where(norm > 0, w / np.maximum(norm, TINY), 0))
        return self._scaled(rows, np.where(size > 0, own, 0) + pull)

    def _pull(self, size: Array, slope: Callable[[Array, Array], Array]) -> Array:
        """The sum over a leaf's groups of slope(norm, lam w), by which its entry is pulled."""
        square, _ = self.tree.levels.climb(size)
        pulls = slope(np.sqrt(square), self.lam * self.slots)
        return self.tree.levels.descend(np.pad(pulls, ((0, 1), (0, 0))), np.add)

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """The prox of the leaves' part alone."""
        size = self.magnitudes(rows)
        return self._scaled(rows, self._leaves(size, step) / np.maximum(size, TINY))

    def smooth_pull(self, rows: Tensor, mu: float) -> Tensor:
        """The gradient of the inner nodes' part, smoothed by mu (Chen et al. 2012).

        The smoothed part is below the part itself by at most mu * `spread`.
        """
        size = self.magnitudes(rows)
        return self._scaled(rows, self._pull(size, lambda n, w: w * w / np.maximum(mu, w * n)))

    def curvature(self, mu: float) -> float:
        """A Lipschitz constant of `smooth_pull`: lam^2 max_j sum of w^2 over its groups, by mu."""
        square = np.pad(self.slots**2, ((0, 1), (0, 0)))
        return self.lam**2 * float(self.tree.levels.descend(square, np.add).max()) / mu

    def spread(self, count: int) -> float:
        """What mu is multiplied by in the smoothing error of `count` rows: half of all balls."""
        return 0.5 * count * len(self.tree.children)

    def feasible(
        self, residual: Tensor, pull: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """The factor in (0, 1] that makes the residual dual feasible; None where not convex."""
        if not self.convex:
            return None
        size = self.magnitudes(residual)
        if needed > 0 and not self._gone(size, self.lam / min(1.0, needed)).all():
            return 0.0
        largest = self._dual_norm(size, self.lam)
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def vanishing(self, cross: Tensor) -> float:
        """The smallest lam from which zero is optimal: the dual of the tree norm at `cross`."""
        if not self.convex:
            return super().vanishing(cross)
        return self._dual_norm(self.magnitudes(cross), 0.0)

    def _dual_norm(self, size: Array, least: float) -> float:
        """The smallest t for which all of `size`, (columns, rows), shrink to zero, or `least`.

        Bisection for all rows at once; rows that are gone where others are not are left out. The
        upper end of the bracket is returned. A t below the largest entry over the weights of its
        path cannot be enough.
        """
        size = size[:, ~self._gone(size, least)]
        if not size.shape[1]:
            return least
        low = max(least, float((size / self._path).max()))
        high = low * (1 + 1e-6)
        while not (gone := self._gone(size, high)).all():
            size, low, high = size[:, ~gone], high, high + 8 * (high - low)
        while high - low > max(WIDTH * high, EXCESS * (high - least) * (least > 0)):
            middle = 0.5 * (low + high)
            gone = self._gone(size, middle)
            if gone.all():
                high = middle
            else:
                size, low = size[:, ~gone], middle
        return high

    @cached_property
    def _path(self) -> Array:
        """The sum of the weights over each leaf and its ancestors, (columns, 1)."""
        padded = np.pad(self.slots, ((0, 1), (0, 0)))
        return self.tree.levels.descend(padded, np.add) + self.slots[: self.tree.leaves]

    def _gone(self, size: Array, strength: float) -> Array:
        """Which columns of `size`, (leaves, rows), the prox of step one takes to zero."""
        levels = self.tree.levels
        left = np.maximum(size - strength * self.slots[: len(size)], 0)
        square, _ = levels.climb(left, strength * self.slots)
        return (square[levels.parents == len(levels.order)] == 0).all(axis=0)

    def excess(self, residual: Tensor) -> Tensor:
        """What the prox of step one leaves of each row."""
        return self.prox(residual, 1.0).norm(dim=1)


@dataclass(frozen=True, eq=False)
class BlockTreeLasso(TreeLasso):
    """lam sum_v w_v |beta_{:, G_v}|_F: the groups of `TreeLasso` as whole columns.

    The other reading of Liu et al. eq. 6. It is `TreeLasso` on one row, the norms of the columns.
    Rows are coupled, so that none can be left out; `entries` acts on norms of columns.
    """

    def magnitudes(self, rows: Tensor) -> Array:
        """Norms of columns, (columns, 1)."""
        return np.linalg.norm(_array(rows), axis=0)[:, None]

    def spread(self, count: int) -> float:
        """One ball a node, whatever the number of rows."""
        return super().spread(1)

    def excess(self, residual: Tensor) -> Tensor:
        """Unknown for all."""
        return Penalty.excess(self, residual)


def _array(rows: Tensor) -> Array:
    """A matrix in double, where NumPy can reach it."""
    return rows.detach().double().cpu().numpy()
