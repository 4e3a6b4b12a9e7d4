"""Rows: the parameters that may vanish together, seen as a (groups x features) matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Slice:
    """One parameter seen as a matrix: dimension `dim` becomes the rows, `span` entries each.

    `span` > 1 gives a row several neighbouring entries of `dim`, as a flattened channel owns
    several columns of the linear layer behind it. `dim=None` makes every entry a row of its own.
    """

    param: nn.Parameter
    dim: int | None = 0
    span: int = 1

    def view(self, tensor: Tensor) -> Tensor:
        """The matrix of any tensor that is shaped like the parameter."""
        if self.dim is None:
            return tensor.reshape(-1, 1)
        moved = tensor.movedim(self.dim, 0)
        return moved.reshape(moved.shape[0] // self.span, -1)

    def unview(self, matrix: Tensor) -> Tensor:
        """The inverse of `view`: a matrix back in the parameter's shape."""
        if self.dim is None:
            return matrix.reshape(self.param.shape)
        shape = list(self.param.shape)
        shape.insert(0, shape.pop(self.dim))
        return matrix.reshape(shape).movedim(0, self.dim)


@dataclass(frozen=True, eq=False)
class Rows:
    """A (groups x features) matrix gathered from one or more parameters.

    `name` is the module or channel group it came from. `weight` scales the penalty on this block
    (per-layer lambda, layer balancing). `units` holds, for every row, the id of the removable unit
    in the channel graph that it belongs to (0: none); penalties and solvers never look at it.
    `role` tells the "first" and the "second" of two matrices in one block apart, for solvers that
    balance them.
    """

    name: str
    slices: tuple[Slice, ...]
    units: Tensor
    weight: float = 1.0
    role: str = ""

    def read(self) -> Tensor:
        """A detached copy, (groups, features)."""
        return self._gather([part.param.detach() for part in self.slices])

    def read_grad(self) -> Tensor:
        """A copy of the gradients, (groups, features), zeros where the loss left none."""
        return self._gather([grad_of(part.param) for part in self.slices])

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        """Overwrite the parameters with the entries of `rows`."""
        for param, entries in self.scatter(rows):
            param.copy_(entries)

    @torch.no_grad()
    def add_grad(self, rows: Tensor, scale: float = 1.0) -> None:
        """Add `scale * rows` to the gradients; a parameter without a gradient gets one."""
        for param, entries in self.scatter(rows):
            grad_of(param).add_(entries, alpha=scale)

    def scatter(self, rows: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter with its entries of `rows`, in the parameter's shape."""
        parts = zip(self.slices, rows.split(self._widths, dim=1), strict=True)
        return [(part.param, part.unview(columns)) for part, columns in parts]

    def _gather(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [part.view(one) for part, one in zip(self.slices, tensors, strict=True)]
        return parts[0].clone() if len(parts) == 1 else torch.cat(parts, dim=1)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the matrix is gathered from."""
        return tuple(part.param for part in self.slices)

    @cached_property
    def _widths(self) -> list[int]:
        return [part.view(part.param.detach()).shape[1] for part in self.slices]


def grad_of(param: nn.Parameter) -> Tensor:
    """The gradient of a parameter, made of zeros where the loss left none."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    return param.grad


def unit_norms(blocks: Sequence[Rows], matrices: Sequence[Tensor], count: int) -> Tensor:
    """The 2-norm of all rows that belong to each unit, as a vector of length `count` (unit id)."""
    squares = torch.zeros(count, dtype=torch.float64)
    for block, matrix in zip(blocks, matrices, strict=True):
        squares.index_add_(0, block.units.cpu(), matrix.double().square().sum(dim=1).cpu())
    return squares.sqrt()
