"""The tree-guided group lasso: columns that a dendrogram joins form groups that vanish together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.regression import StructuredPenalty
from prunekit.penalties.base import Penalty
from prunekit.schema import NotNegative
from prunekit.validate import choice, integer, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Mask = NDArray[np.bool_]

TINY = 1e-300
WIDTH = 1e-10  # relative width of the bracket at which a dual norm is known
EXCESS = 1e-3  # or relative width of its excess over the smallest norm that matters


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree, or several, whose leaves are the columns of a matrix.

    Nodes 0 .. leaves - 1 are the columns; node leaves + i has the children `children[i]`, which
    have smaller numbers. `separate` (inner nodes, double) is s in Liu et al. eq. 7: the weight of
    selecting each child separately, while 1 - s is that of selecting all columns below together.
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
        """Build the dendrogram of 1 - similarity; s is the height as a share of the root's.

        Nodes above `cut` of the root's height have no penalty (s = 1). `floor` is a lower bound of
        s: near copies have heights of almost 0, which would leave their leaves without weight.
        """
        from scipy.cluster.hierarchy import linkage  # imported late: takes half a second

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
        """The parent of every node; for roots the number of nodes."""
        size = self.leaves + len(self.children)
        parents = torch.full((size,), size)
        for node, group in enumerate(self.children, self.leaves):
            parents[list(group)] = node
        return parents

    @cached_property
    def weights(self) -> Tensor:
        """w in Liu et al. eq. 7 for every node; they sum to one along each path from a leaf."""
        share = torch.cat([torch.ones(self.leaves, dtype=torch.float64), self.separate.double()])
        above = torch.ones(len(share) + 1, dtype=torch.float64)  # products of s over ancestors
        for node in range(len(share) - 1, -1, -1):
            parent = int(self.parents[node])
            if parent < len(share):
                above[node] = above[parent] * share[parent]
        together = 1 - share
        together[: self.leaves] = 1
        return together * above[:-1]

    def members(self, node: int) -> list[int]:
        """Return the columns below a node, in order."""
        if node < self.leaves:
            return [node]
        below = (self.members(child) for child in self.children[node - self.leaves])
        return sorted(column for group in below for column in group)

    @cached_property
    def levels(self) -> Levels:
        """The nodes sorted by level, for batched work."""
        return Levels.of(self)


def _distances(similarity: Tensor) -> Array:
    """Return max(0, 1 - similarity) above the diagonal, in SciPy's condensed form."""
    count = len(similarity)
    if similarity.shape != (count, count) or not bool(similarity.isfinite().all()):
        raise ConfigError(
            f"similarities of shape {tuple(similarity.shape)} must be square and finite; leave "
            "dead channels out or set them to 0"
        )
    first, second = torch.triu_indices(count, count, 1)
    return _array(1 - similarity.double().cpu()[first, second]).clip(min=0)


@dataclass(frozen=True, eq=False)
class Levels:
    """The nodes of a tree in slots, first the leaves, then inner nodes level by level.

    The level of a node is the length of the longest path to a leaf, so that children are in earlier
    levels. Matrices are (slots, rows); an extra last slot stands for nothing: it is the parent of
    roots and pads children. NumPy is used because a dendrogram of 512 leaves has some 90 levels,
    most with one or two nodes, and small calls take torch several times as long.
    """

    order: Indices  # (slots,): the node in each slot
    spans: tuple[tuple[int, int], ...]  # first slot and end of each level above the leaves
    children: tuple[Indices, ...]  # (most children, nodes) by level: slots
    parents: Indices  # (slots,): the slot of the parent

    @classmethod
    def of(cls, tree: Tree) -> Levels:
        """Sort the nodes of a tree."""
        height = [0] * tree.leaves
        for group in tree.children:
            height.append(1 + max(height[child] for child in group))
        order = sorted(range(len(height)), key=height.__getitem__)
        slot = [0] * len(order) + [len(order)]
        for index, node in enumerate(order):
            slot[node] = index
        spans, children, start = [], [], tree.leaves
        while start < len(order):
            nodes = [node for node in order[start:] if height[node] == height[order[start]]]
            groups = [tree.children[node - tree.leaves] for node in nodes]
            most = max(map(len, groups))
            padded = [[slot[c] for c in g] + [len(order)] * (most - len(g)) for g in groups]
            spans.append((start, start + len(nodes)))
            children.append(np.array(padded).T)
            start += len(nodes)
        parents = np.array([slot[int(tree.parents[node])] for node in order])
        return cls(np.array(order), tuple(spans), tuple(children), parents)

    def up(self, leaves: Array, thresholds: Array | None = None) -> tuple[Array, Array]:
        """Return squared norms of all groups (slots, rows), and factors (slots + 1, rows).

        `leaves` are magnitudes, (columns, rows). With `thresholds` (slots, 1 or rows) each group is
        soft-thresholded after its children; norms are those afterwards. This scales the group by a
        factor, so that the norms of its children say all that is needed. Factors of leaves are 1.
        """
        square = np.zeros((len(self.order) + 1, leaves.shape[1]))
        np.multiply(leaves, leaves, out=square[: len(leaves)])
        factor = np.empty_like(square)
        factor[: len(leaves)] = factor[-1] = 1
        for (start, stop), children in zip(self.spans, self.children, strict=True):
            total = square[children[0]]
            for more in children[1:]:
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

    def down(self, values: Array, combine: np.ufunc) -> Array:
        """Return, for every leaf, the values of all its strict ancestors combined, (leaves, rows).

        `values` is (slots + 1, rows); its last row must be the neutral element.
        """
        total = values.copy()
        for first, stop in reversed(self.spans):
            level = total[first:stop]
            combine(level, total[self.parents[first:stop]], out=level)
        leaves = self.spans[0][0] if self.spans else len(self.order)
        combined: Array = total[self.parents[:leaves]]
        return combined


@dataclass(frozen=True, eq=False)
class TreeLasso(StructuredPenalty):
    """lam sum_k sum_v w_v |beta_{k, G_v}|_2 over rows k and nodes v of a tree (Liu et al. eq. 6).

    Rows of beta are input channels, columns are the leaves. With `mix`, leaves have weight 1 and
    inner nodes `mix` times their weights. `entries` takes the place of the leaves' part. For l1
    entries the prox is exact (Jenatton et al. 2011: leaves first, then groups, children before
    parents). For others the same composition is used, whose fixed points are only stationary.
    """

    tree: Tree
    mix: Annotated[NotNegative | None, "weight of inner nodes; null: as published"] = None
    offers: ClassVar[frozenset[str]] = frozenset({"prox", "subgradient", "smoothing"})

    @cached_property
    def weights(self) -> Tensor:
        """The weight of every node of the tree, by node number."""
        if self.mix is None:
            return self.tree.weights
        inner = self.tree.weights[self.tree.leaves :] * self.mix
        return torch.cat([torch.ones(self.tree.leaves, dtype=torch.float64), inner])

    @cached_property
    def slot_weights(self) -> Array:
        """The weights in the order of the tree's levels, (slots, 1)."""
        weights: Array = self.weights.numpy()[self.tree.levels.order][:, None]
        return weights

    def magnitudes(self, rows: Tensor) -> Array:
        """Return the magnitudes that groups consist of, (columns, rows): absolute entries."""
        size: Array = np.abs(_array(rows).T, order="C")
        return size

    def value(self, rows: Tensor) -> Tensor:
        """Return the sum over rows and nodes, a scalar tensor."""
        size = self.magnitudes(rows)
        square, _ = self.tree.levels.up(size)
        inner = (np.sqrt(square) * self.slot_weights)[len(size) :].sum() * self.lam
        leaves = self.single.phi(torch.from_numpy(size)).numpy() * self.slot_weights[: len(size)]
        return torch.tensor(inner + leaves.sum(), dtype=torch.float64)

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of the leaves, then of the groups of each level."""
        number("step", step, above=0)
        size = self.magnitudes(rows)
        left = self._prox_leaves(size, step)
        _, factor = self.tree.levels.up(left, step * self.lam * self.slot_weights)
        left *= self.tree.levels.down(factor, np.multiply)
        return _scaled(rows, left / np.maximum(size, TINY))

    def _prox_leaves(self, size: Array, step: float) -> Array:
        """Return the prox of the leaves' part; leaves without weight stay as they are."""
        weights = self.slot_weights[: len(size)]
        left: Array = np.maximum(size - step * self.lam * weights, 0)
        if self.convex:
            return left
        left = size.copy()
        for weight in np.unique(weights[weights > 0]).tolist():
            same = weights[:, 0] == weight
            part = torch.from_numpy(size[same])
            prox = self.single.prox_magnitude(part.flatten(), step * weight)
            left[same] = prox.view_as(part).numpy()
        return left

    def subgradient(self, rows: Tensor) -> Tensor:
        """Return the subgradient that is zero in groups that are zero."""
        size = self.magnitudes(rows)
        safe = np.maximum(size, TINY)
        weights = self.slot_weights[: len(size)]
        own = self.single.slope(torch.from_numpy(safe)).numpy() / safe * weights
        groups = self._sum_over_groups(
            size, lambda norm, w: np.where(norm > 0, w / np.maximum(norm, TINY), 0)
        )
        return _scaled(rows, np.where(size > 0, own, 0) + groups)

    def _sum_over_groups(self, size: Array, slope: Callable[[Array, Array], Array]) -> Array:
        """Return the sum of slope(norm, lam w) over the inner groups of each leaf."""
        square, _ = self.tree.levels.up(size)
        slopes = slope(np.sqrt(square), self.lam * self.slot_weights)
        return self.tree.levels.down(np.pad(slopes, ((0, 1), (0, 0))), np.add)

    def prox_entries(self, rows: Tensor, step: float) -> Tensor:
        """Return the prox of the leaves' part."""
        size = self.magnitudes(rows)
        return _scaled(rows, self._prox_leaves(size, step) / np.maximum(size, TINY))

    def smoothed_gradient(self, rows: Tensor, mu: float) -> Tensor:
        """Return the gradient of the inner nodes' part, smoothed by `mu`."""
        size = self.magnitudes(rows)
        slopes = self._sum_over_groups(size, lambda n, w: w * w / np.maximum(mu, w * n))
        return _scaled(rows, slopes)

    def curvature(self, mu: float) -> float:
        """Return lam^2 / mu times the largest sum of w^2 over the inner groups of a leaf."""
        square = np.pad(self.slot_weights**2, ((0, 1), (0, 0)))
        return self.lam**2 * float(self.tree.levels.down(square, np.add).max()) / mu

    def smoothing_error(self, rows: int) -> float:
        """Return half the number of inner groups."""
        return 0.5 * rows * len(self.tree.children)

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the factor in (0, 1] that makes the residual dual feasible; None if not convex."""
        if not self.convex:
            return None
        size = self.magnitudes(residual)
        if needed > 0 and not self._vanish(size, self.lam / min(1.0, needed)).all():
            return 0.0
        largest = self._dual_norm(size, self.lam)
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def lam_max(self, cross: Tensor) -> float:
        """Return the smallest lam for which zero is optimal: the dual norm of `cross`."""
        if not self.convex:
            return super().lam_max(cross)
        return self._dual_norm(self.magnitudes(cross), 0.0)

    def _dual_norm(self, size: Array, least: float) -> float:
        """Return the smallest lam for which all of `size` vanishes, or `least` if that is larger.

        All rows are bisected at once; rows that vanish where others do not are left out. The upper
        end of the bracket is returned. No lam below the largest entry, divided by the weights of
        its path to the root, is enough.
        """
        size = size[:, ~self._vanish(size, least)]
        if not size.shape[1]:
            return least
        low = max(least, float((size / self._path_weights).max()))
        high = low * (1 + 1e-6)
        while not (vanish := self._vanish(size, high)).all():
            size, low, high = size[:, ~vanish], high, high + 8 * (high - low)
        while high - low > max(WIDTH * high, EXCESS * (high - least) * (least > 0)):
            middle = 0.5 * (low + high)
            vanish = self._vanish(size, middle)
            if vanish.all():
                high = middle
            else:
                size, low = size[:, ~vanish], middle
        return high

    @cached_property
    def _path_weights(self) -> Array:
        """The sum of the weights of each leaf and its ancestors, (columns, 1)."""
        padded = np.pad(self.slot_weights, ((0, 1), (0, 0)))
        ancestors = self.tree.levels.down(padded, np.add)
        ancestors += self.slot_weights[: self.tree.leaves]
        return ancestors

    def _vanish(self, size: Array, lam: float) -> Mask:
        """Return which rows of beta the prox of step 1 sets to zero; `size` is (leaves, rows)."""
        levels = self.tree.levels
        left = np.maximum(size - lam * self.slot_weights[: len(size)], 0)
        square, _ = levels.up(left, lam * self.slot_weights)
        roots = square[levels.parents == len(levels.order)]
        vanish: Mask = (roots == 0).all(axis=0)
        return vanish

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Return the norm of each row of the prox of step 1."""
        excess: Tensor = self.prox(residual, 1.0).norm(dim=1)
        return excess


@dataclass(frozen=True, eq=False)
class BlockTreeLasso(TreeLasso):
    """lam sum_v w_v |beta_{:, G_v}|_F: groups are whole columns, the other reading of eq. 6.

    It is `TreeLasso` on one row, the norms of the columns, on which `entries` acts. It couples
    rows, so none can be left out.
    """

    def magnitudes(self, rows: Tensor) -> Array:
        """Return the norms of columns, (columns, 1)."""
        norms: Array = np.linalg.norm(_array(rows), axis=0)[:, None]
        return norms

    def smoothing_error(self, rows: int) -> float:
        """Return half the number of inner groups, whatever the number of rows."""
        return super().smoothing_error(1)

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Return infinity for all rows: nothing is known."""
        return Penalty.dual_excess(self, residual)


def _scaled(rows: Tensor, factor: Array) -> Tensor:
    """Return entries times a factor for each, (columns, rows or 1)."""
    return (rows.double() * torch.from_numpy(factor).T.to(rows.device)).to(rows.dtype)


def _array(tensor: Tensor) -> Array:
    """Return a tensor as a double NumPy array."""
    array: Array = tensor.detach().double().cpu().numpy()
    return array
