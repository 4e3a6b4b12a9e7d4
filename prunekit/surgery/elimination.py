"""Remove units from what layers read, one after another, and refit what is left after each.

Let A be the covariance matrix of a layer's inputs. Without the inputs S of a unit, the squared
error of the outputs x W rises by tr(W_S' [(A^-1)_SS]^-1 W_S) where what is left is refitted
(optimal brain surgeon, Hassibi and Stork 1993; A is the Hessian of the squared error of the
outputs, which needs no labels). Afterwards W and A^-1 are updated by a block elimination.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prunekit.surgery.read_moments import Reading

_SMALLEST = 1e-10  # of the mean variance, so that dependent inputs can be told apart


class Elimination:
    """The units of one group, removed one by one from everything that reads them.

    `units` are their ids. The ridge draws refitted weights to the old ones, for every input in
    proportion to its variance: each input counts as if it carried noise of so many times its own
    variance. Errors are relative to the variance of a layer's outputs and summed over layers.
    """

    def __init__(self, readings: Sequence[Reading], units: Tensor, ridge: float) -> None:
        concerned = [r for r in readings if bool(torch.isin(r.units, units).any())]
        self.count = len(units)
        self._layers = [_Regression(reading, units, ridge) for reading in concerned]
        self._left = torch.ones(self.count, dtype=torch.bool)

    def increases(self) -> Tensor:
        """Return by how much the removal of each unit raises the error; infinity if it is gone."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for layer in self._layers:
            for numbers, increases in layer.increases():
                total.index_add_(0, numbers, increases)
        return torch.where(self._left, total, torch.inf)

    def increase(self, number: int) -> float:
        """Return by how much the removal of one unit raises the error."""
        return sum(layer.increase(number) for layer in self._layers)

    def remove(self, number: int) -> None:
        """Remove a unit, given by its place among `units`."""
        self._left[number] = False
        for layer in self._layers:
            layer.remove(number)

    def unexplained(self) -> Tensor:
        """Return the squared weights of every unit, times what others leave of it unexplained."""
        total = torch.zeros(self.count, dtype=torch.float64)
        for layer in self._layers:
            for numbers, errors in layer.unexplained():
                total.index_add_(0, numbers, errors)
        return total


class _Regression:
    """The regression of one layer's outputs on the inputs that are left."""

    def __init__(self, reading: Reading, units: Tensor, ridge: float) -> None:
        self.reading, self._weights = reading, reading.weights.clone()
        own = reading.covariance.diagonal()
        least = (_SMALLEST * own.mean()).clamp_min(torch.finfo(torch.double).tiny ** 0.5)
        damped = reading.covariance + torch.diag(ridge * own + least)
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self._inputs = {
            number: rows
            for number, unit in enumerate(units.tolist())
            if len(rows := (reading.units == unit).nonzero().flatten())
        }

    def increases(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers of units, and by how much the removal of each raises the error."""
        for numbers, rows in self._batches():
            weights = self._weights[rows]
            gain = torch.linalg.solve(self._blocks(rows), weights)
            yield numbers, self.reading.relative((weights * gain).sum((1, 2)))

    def unexplained(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers of units, and the weighted variance that other units leave of each."""
        for numbers, rows in self._batches():
            residual = torch.linalg.inv(self._blocks(rows)).diagonal(dim1=1, dim2=2)
            squares = self._weights[rows].square().sum(2)
            yield numbers, self.reading.relative((residual * squares).sum(1))

    def increase(self, number: int) -> float:
        """Return by how much the removal of one unit raises the error."""
        rows = self._inputs.get(number)
        if rows is None:
            return 0.0
        weights = self._weights[rows]
        gain = torch.linalg.solve(self._inverse[rows][:, rows], weights)
        return float(self.reading.relative((weights * gain).sum()))

    def remove(self, number: int) -> None:
        """Remove the inputs of a unit."""
        rows = self._inputs.pop(number, None)
        if rows is None:
            return
        columns = self._inverse[:, rows]
        factor = torch.linalg.solve(columns[rows], columns.T).T
        self._weights -= factor @ self._weights[rows]
        self._inverse -= factor @ columns.T

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield numbers of units with equally many inputs, and their inputs, (units, inputs)."""
        sizes: dict[int, list[int]] = {}
        for number, rows in self._inputs.items():
            sizes.setdefault(len(rows), []).append(number)
        for numbers in sizes.values():
            yield torch.tensor(numbers), torch.stack([self._inputs[n] for n in numbers])

    def _blocks(self, rows: Tensor) -> Tensor:
        return self._inverse[rows[:, :, None], rows[:, None, :]]


def greedy_order(elimination: Elimination) -> Iterator[tuple[int, float]]:
    """Yield the unit whose removal raises the error least, and by how much, until none is left."""
    for _ in range(elimination.count):
        increases = elimination.increases()
        number = int(increases.argmin())
        yield number, float(increases[number])
        elimination.remove(number)
