"""Sample rows of a layer for its regression, as many as its unknowns need and memory allows."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor

from prunekit.errors import DataError
from prunekit.graph.linear_maps import LinearMap
from prunekit.surgery.reconstruction.ridge import Fit, GramRegression, Regression, RowRegression

_FEWEST_ROWS = 2000  # of a layer with few unknowns
_FEWEST_EXAMPLES = 64  # where their states fit into memory
_FLOAT = 8  # bytes; sums are in float64


def rows_wanted(layer: LinearMap, rows: float) -> float:
    """Return how many rows a layer is to be refitted on, at `rows` per unknown weight."""
    return max(rows * layer.unknowns, _FEWEST_ROWS)


def batches_wanted(layer: LinearMap, output: Tensor, rows: float) -> tuple[int, int]:
    """Return how many batches have enough rows, and enough examples too.

    `output` is that of one batch; positions of one example are alike.
    """
    per_batch, examples = max(layer.count_rows(output), 1), max(len(output), 1)
    least = ceil(rows_wanted(layer, rows) / per_batch)
    return least, max(least, ceil(_FEWEST_EXAMPLES / examples))


class RowSample:
    """The rows that a layer is refitted on: `rows` per unknown, from all examples alike.

    There are `chunks` outputs of one size. Layers with more unknowns than rows, or with a Gram
    matrix that does not fit into `memory` (bytes), are solved in the space of rows.
    """

    def __init__(
        self, name: str, layer: LinearMap, rows: float, memory: float, chunks: int
    ) -> None:
        self.name, self.layer, self.chunks = name, layer, chunks
        unknowns, groups = layer.unknowns, layer.groups
        self._wanted = rows_wanted(layer, rows)
        self._fits = 3 * groups * unknowns**2 * _FLOAT <= memory
        self._most = max(memory / (3 * groups * unknowns * _FLOAT), 1)
        self._regression: Regression | None = None
        self._share = 1.0
        self._generator = torch.Generator().manual_seed(0)

    def add(self, x: Tensor, target: Tensor, error: Tensor | None) -> None:
        """Add sampled rows of one call; raise DataError where they are not finite."""
        count = self.layer.count_rows(target)
        if self._regression is None:
            self._plan(count * self.chunks)
        chosen = self._choose(count).to(target.device)
        inputs = self.layer.input_rows(x, target, chosen)
        targets, correction = (
            None if values is None else self.layer.output_rows(values, chosen)
            for values in (target, error)
        )
        assert self._regression is not None and targets is not None
        found = (inputs, targets) if correction is None else (inputs, targets, correction)
        if not all(bool(values.isfinite().all()) for values in found):
            raise DataError(
                f"{self.name} cannot be refitted: it reads or puts out NaN or infinity for some "
                "images; remove them, or leave the layers as they are with reconstruct=none"
            )
        self._regression.add(inputs, targets, correction)

    def solve(self, ridge: float) -> Fit:
        """Return the solution."""
        old, bias = self.layer.matrix(), self.layer.layer.bias
        shape = (old.shape[0], old.shape[2])
        flat = old.new_zeros(shape) if bias is None else bias.detach().reshape(shape)
        assert self._regression is not None
        return self._regression.solve(old, flat.double(), ridge)

    def _plan(self, total: int) -> None:
        """Choose the share of all rows that is used, and how the regression is solved."""
        wanted = min(self._wanted, total)
        if wanted >= self.layer.unknowns and self._fits:
            self._regression = GramRegression()
        else:
            wanted, self._regression = min(wanted, self._most), RowRegression()
        self._share = wanted / max(total, 1)

    def _choose(self, count: int) -> Tensor:
        if self._share >= 1:
            return torch.arange(count)
        number = max(1, round(self._share * count))
        return torch.randperm(count, generator=self._generator)[:number]
