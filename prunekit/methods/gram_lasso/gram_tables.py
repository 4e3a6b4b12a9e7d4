"""The similarity tables of a layer: what a lasso on its channels needs to know of the maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.methods.gram_lasso.features import Maps
from prunekit.methods.gram_lasso.grams import Columns, Vectors

_DEAD = 1e-6  # of the median norm
_MIB = 2**20


@dataclass(frozen=True, eq=False)
class Tables:
    """Inner products of the unit vectors of a layer's channels, double, on the CPU.

    With K the vectors of M input channels as columns and L those of N output channels: `inputs` =
    K'K (M, M), `cross` = K'L (M, N), `outputs` = L'L (N, N), `energy` its diagonal. For Gram
    matrices these are values of centred kernel alignment. Channels whose vector is zero, or a
    millionth of the median, are dead: their rows and columns are zero. `input_units` is the unit
    of every input channel, 0 where it is fixed. `similarity` (N, N) is what output channels are
    tied together by: `outputs`, if nothing else was asked for.
    """

    inputs: Tensor
    cross: Tensor
    outputs: Tensor
    energy: Tensor
    dead_inputs: Tensor
    dead_outputs: Tensor
    input_units: Tensor
    similarity: Tensor


@torch.no_grad()
def tables_of(
    columns: Columns,
    inputs: Maps,
    outputs: Maps,
    labels: Tensor | None = None,
    memory: float = 256,
) -> Tables:
    """The tables of maps before and after a layer, on the device that holds them.

    Beyond maps and tables at most about `memory` MiB are taken at a time. `labels` are the
    examples' classes, for columns that ask for them.
    """
    room = int(memory * _MIB)
    labels = torch.zeros(inputs.examples, dtype=torch.long) if labels is None else labels.cpu()
    left, right = (columns.vectors(maps, labels, room // 8) for maps in (inputs, outputs))
    gram, cross, response = _inner_products(left, right, room * 3 // 8)
    dead_inputs, dead_outputs = _normalise(gram, cross, response)
    gram, cross, response = gram.cpu(), cross.cpu(), response.cpu()
    return Tables(
        inputs=gram,
        cross=cross,
        outputs=response,
        energy=response.diagonal().clone(),
        dead_inputs=dead_inputs.cpu(),
        dead_outputs=dead_outputs.cpu(),
        input_units=torch.zeros(len(gram), dtype=torch.long),
        similarity=response,
    )


def _inner_products(left: Vectors, right: Vectors, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Products within panels in the maps' precision, their sums in double."""
    sums: list[Tensor] = []
    for rows in _panels(left.steps, room // (left.step_bytes + right.step_bytes)):
        x, y = left.panel(rows), right.panel(rows)
        if not sums:
            sums = [_zeros(a, b) for a, b in ((x, x), (x, y), (y, y))]
        for total, (a, b) in zip(sums, ((x, x), (x, y), (y, y)), strict=True):
            total += a @ b.T
        del x, y, a, b
    gram, cross, response = sums
    return gram, cross, response


def _zeros(a: Tensor, b: Tensor) -> Tensor:
    return torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)


def _panels(steps: int, most: int) -> Iterator[range]:
    """All steps, `most` at a time, in four panels at least: those of triangles get narrower."""
    size = max(1, min(most, -(-steps // 4)))
    return (range(first, min(first + size, steps)) for first in range(0, steps, size))


def _normalise(gram: Tensor, cross: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by norms, in place; dead channels become zero and are returned as masks."""
    dead_inputs, left = _factors(gram)
    dead_outputs, right = _factors(response)
    for table, rows, columns in (
        (gram, left, left),
        (cross, left, right),
        (response, right, right),
    ):
        table.mul_(rows[:, None]).mul_(columns).clamp_(-1, 1)
    for table, dead in ((gram, dead_inputs), (response, dead_outputs)):
        table.add_(table.T.clone()).mul_(0.5)
        table.diagonal().copy_(~dead)
    return dead_inputs, dead_outputs


def _factors(table: Tensor) -> tuple[Tensor, Tensor]:
    """Which channels are dead, and what the others are multiplied with."""
    norms = table.diagonal().clamp_min(0).sqrt()
    dead = (norms <= _DEAD * norms.median()) | (norms == 0)
    return dead, torch.where(dead, 0.0, 1 / norms)
