"""Rows: the parameters that may vanish together, viewed as a (rows x features) matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Slice:
    """One parameter viewed as a matrix: dimension `dim` becomes the rows, `span` entries each.

    With `span` > 1 a row has several neighbouring entries of `dim`, as a flattened channel owns
    several columns of the next linear layer. With `dim=None` every entry is a row.
    """

    param: Tensor
    dim: int | None = 0
    span: int = 1

    def view(self, tensor: Tensor) -> Tensor:
        """Reshape any tensor that is shaped like the parameter to the matrix."""
        if self.dim is None:
            return tensor.reshape(-1, 1)
        moved = tensor.movedim(self.dim, 0)
        return moved.reshape(moved.shape[0] // self.span, -1)

    def unview(self, matrix: Tensor) -> Tensor:
        """Reshape a matrix to the parameter's shape; the inverse of `view`."""
        if self.dim is None:
            return matrix.reshape(self.param.shape)
        shape = list(self.param.shape)
        shape.insert(0, shape.pop(self.dim))
        return matrix.reshape(shape).movedim(0, self.dim)


@dataclass(frozen=True, eq=False)
class Rows:
    """A (rows x features) matrix over one or more parameters, whose rows may vanish.

    `name` is the module or channel group that it belongs to. `weight` scales the penalty on this
    matrix (lambda per layer, layer balancing). `units` has for every row the id of its removable
    unit in the channel graph (0: none); penalties and solvers do not use it. `role` distinguishes
    the "first" and the "second" of two matrices in one block, for solvers that balance them.
    """

    name: str
    slices: tuple[Slice, ...]
    units: Tensor
    weight: float = 1.0
    role: str = ""

    def read(self) -> Tensor:
        """Return a detached copy, (rows, features)."""
        return self._gather([part.param.detach() for part in self.slices])

    def read_grad(self) -> Tensor:
        """Return a copy of the gradients, (rows, features); missing gradients are zeros."""
        return self._gather([grad_of(part.param) for part in self.slices])

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        """Overwrite the parameters with the entries of `rows`."""
        for param, entries in self.scatter(rows):
            param.copy_(entries)

    @torch.no_grad()
    def add_grad(self, rows: Tensor, scale: float = 1.0) -> None:
        """Add `scale * rows` to the gradients; missing gradients are created."""
        for param, entries in self.scatter(rows):
            grad_of(param).add_(entries, alpha=scale)

    def scatter(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return every parameter with its entries of `rows`, in the parameter's shape."""
        parts = zip(self.slices, torch.split(rows, self._widths, dim=1), strict=True)
        return [(part.param, part.unview(columns)) for part, columns in parts]

    def _gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Join tensors, shaped like the parameters, to one matrix that shares no memory."""
        pairs = zip(self.slices, tensors, strict=True)
        parts = [part.view(tensor) for part, tensor in pairs]
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim=1)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The parameters of the matrix."""
        return tuple(part.param for part in self.slices)

    @cached_property
    def _widths(self) -> list[int]:
        return [part.view(part.param.detach()).shape[1] for part in self.slices]


def grad_of(param: Tensor) -> Tensor:
    """Return the gradient of a parameter; a missing one is created with zeros."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    return param.grad


def unit_norms(blocks: Sequence[Rows], matrices: Sequence[Tensor], count: int) -> Tensor:
    """Return the 2-norm of all rows of each unit, a double vector over the `count` unit ids."""
    squares = torch.zeros(count, dtype=torch.float64)
    for block, matrix in zip(blocks, matrices, strict=True):
        squares.index_add_(0, block.units.cpu(), matrix.double().square().sum(dim=1).cpu())
    return squares.sqrt()
