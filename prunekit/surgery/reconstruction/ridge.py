"""Ridge regression towards old weights, for rows of inputs and targets that arrive in chunks.

For inputs x, targets y and old weights W0 it finds the W that minimises the mean over rows of
|x W + b - y|^2, plus r |W - W0|^2 with r = `ridge` times the mean variance of the inputs. The
intercept b is not penalised. Sums are in float64, over products in the precision of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_ATTEMPTS = 30  # at a ridge that is ten times as high each time
_AT_ONCE = 4096  # rows whose products are summed in their own precision
_SMALLEST = 1e-12  # of the mean square of inputs, so that constant inputs can be solved


@dataclass(frozen=True, eq=False)
class Fit:
    """A solution: targets are about inputs @ matrix + intercept, (groups, p, o) and (groups, o).

    `before` and `after` are mean squared errors on the rows, of the old and the new weights,
    divided by the variance of the targets. `rows` is how many there were.
    """

    matrix: Tensor
    intercept: Tensor
    before: float
    after: float
    rows: int


class Regression(Protocol):
    """Takes rows in chunks: inputs (groups, n, p), targets (groups, n, o), a correction of them.

    The correction, in the shape of the targets or None, is added to them. Its spread counts at most
    as much as that of the target itself, since a small norm scale behind the layer enlarges it.
    """

    def add(self, x: Tensor, y: Tensor, correction: Tensor | None) -> None:
        """Add a chunk of rows."""

    def solve(self, old: Tensor, bias: Tensor, ridge: float) -> Fit:
        """Return the solution for old weights (groups, p, o) and an old bias (groups, o)."""


class GramRegression:
    """Keeps sums of products only: p x p numbers per group, for any number of rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._shift: tuple[Tensor, Tensor] | None = None  # keeps sums of squares small
        self._sums: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor, correction: Tensor | None) -> None:
        """Add a chunk of rows."""
        x, z = _single(x), _single(_with_correction(y, correction))
        if self._shift is None:
            self._shift = x.mean(1, keepdim=True).double(), z.mean(-2, keepdim=True).double()
        shift_x, shift_z = (shift.to(x) for shift in self._shift)
        for start in range(0, x.shape[1], _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._add(x[:, part] - shift_x, z[:, :, part] - shift_z)
        self.rows += x.shape[1]

    def _add(self, x: Tensor, z: Tensor) -> None:
        terms = [x.sum(1), z.sum(-2), x.mT @ x, x.mT @ z, *_products(z)]
        if self._sums:
            for total, term in zip(self._sums, terms, strict=True):
                total += term
        else:
            self._sums = [term.double() for term in terms]

    def solve(self, old: Tensor, bias: Tensor, ridge: float) -> Fit:
        """Return the solution by a Cholesky decomposition of the Gram matrix."""
        assert self._shift is not None
        n, old = self.rows, old.double()
        x, z, xx, xz, yy, yc, cc = (total / n for total in self._sums)
        gram = xx - x[:, :, None] * x[:, None, :]
        with_z = xz - x[:, :, None] * z[:, :, None, :]
        spreads = yy - z[0] ** 2, yc - z[0] * z[1], cc - z[1] ** 2
        share = _share(*spreads)
        cross = with_z[0] + share[:, None] * with_z[1]  # of inputs and corrected targets
        square = xx.diagonal(dim1=1, dim2=2).mean(1) + (self._shift[0] ** 2).mean((1, 2))
        strength = _strength(gram.diagonal(dim1=1, dim2=2).mean(1), square, ridge)
        residual = cross - gram @ old
        step = torch.cholesky_solve(residual, _factor(gram, strength))
        variance = spreads[0] + 2 * share * spreads[1] + share**2 * spreads[2]
        scattered = variance - ((2 * cross - gram @ old) * old).sum(1)
        after = scattered - ((2 * residual - gram @ step) * step).sum(1)
        mean_x, mean_z = x + self._shift[0][:, 0], z + self._shift[1][:, :, 0]
        mean_y = mean_z[0] + share * mean_z[1]
        before = scattered + (mean_y - _product(mean_x, old) - bias) ** 2
        new = step.add_(old)  # in place: it is large where there are many unknowns
        intercept = mean_y - _product(mean_x, new)
        return Fit(new, intercept, *_relative(before, after, variance), n)


class RowRegression:
    """Keeps all rows, and solves for one number per row: for more unknowns than rows."""

    def __init__(self) -> None:
        self._chunks: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, y: Tensor, correction: Tensor | None) -> None:
        """Add a chunk of rows."""
        self._chunks.append((x, _with_correction(y, correction)))

    def solve(self, old: Tensor, bias: Tensor, ridge: float) -> Fit:
        """Return the solution by a Cholesky decomposition of the products of rows."""
        x = torch.cat([chunk for chunk, _ in self._chunks], 1).double()
        z = torch.cat([chunk for _, chunk in self._chunks], -2).double()
        self._chunks.clear()
        n, old = x.shape[1], old.double()
        square, mean_x, mean_z = (x**2).mean((1, 2)), x.mean(1, keepdim=True), z.mean(-2)
        x -= mean_x
        centred = z - mean_z[:, :, None]
        share = _share(*(total / n for total in _products(centred)))
        y = centred[0] + share[:, None] * centred[1]
        residual = y - x @ old
        strength = _strength((x**2).mean((1, 2)), square, ridge)
        kernel = x @ x.mT / n
        step = x.mT @ torch.cholesky_solve(residual / n, _factor(kernel, strength))
        mean_y = mean_z[0] + share * mean_z[1]
        off = mean_y - _product(mean_x[:, 0], old) - bias
        before, after = (residual**2).mean(1) + off**2, ((residual - x @ step) ** 2).mean(1)
        new = step.add_(old)
        intercept = mean_y - _product(mean_x[:, 0], new)
        return Fit(new, intercept, *_relative(before, after, (y**2).mean(1)), n)


def _with_correction(y: Tensor, correction: Tensor | None) -> Tensor:
    """Return targets and corrections as (2, groups, rows, o)."""
    return torch.stack([y, torch.zeros_like(y) if correction is None else correction])


def _single(x: Tensor) -> Tensor:
    """Return numbers in float32 at least: products of halves are too coarse."""
    return x if x.dtype == torch.float64 else x.float()


def _product(mean: Tensor, matrix: Tensor) -> Tensor:
    """Return the outputs (groups, o) for one row of inputs per group, (groups, p)."""
    return (mean[:, None] @ matrix)[:, 0]


def _products(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of squares of targets, of products with corrections, of squares of these."""
    return (z[0] ** 2).sum(1), (z[0] * z[1]).sum(1), (z[1] ** 2).sum(1)


def _share(yy: Tensor, yc: Tensor, cc: Tensor) -> Tensor:
    """Return how much of the correction is added: its spread is at most that of the target."""
    share = (yy.clamp_min(0) / cc.clamp_min(torch.finfo(cc.dtype).tiny)).sqrt()
    return share.clamp_max(1.0)


def _strength(variance: Tensor, square: Tensor, ridge: float) -> Tensor:
    """Return the ridge of every group, above zero also for inputs that do not vary."""
    floor = (_SMALLEST * square).clamp_min(torch.finfo(square.dtype).tiny ** 0.5)
    return torch.maximum(ridge * variance, floor)


def _factor(gram: Tensor, strength: Tensor) -> Tensor:
    """Return the Cholesky factor of matrices with a ridge, raised where rounding defeats it."""
    for _ in range(_ATTEMPTS):
        ridged = gram.clone()
        ridged.diagonal(dim1=1, dim2=2).add_(strength[:, None])
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(ridged)
        if not bool(failed.any()):
            break
        strength = torch.where(failed > 0, 10 * strength, strength)
    return factor


def _relative(before: Tensor, after: Tensor, variance: Tensor) -> tuple[float, float]:
    """Return both errors, summed over outputs, relative to the variance of the targets."""
    total = float(variance.sum().clamp_min(torch.finfo(variance.dtype).tiny))
    return max(float(before.sum()), 0.0) / total, max(float(after.sum()), 0.0) / total
