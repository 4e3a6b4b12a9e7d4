"""Second moments of what layers read on a sample of inputs, and how units share in what they get.

Layers behind a cut can be refitted (`surgery.reconstruction`). What they then lose is known from
the covariance of their inputs and their weights alone, before anything is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import DataError
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import WEIGHTED_LAYERS
from prunekit.graph.linear_maps import LinearMap
from prunekit.modes import evaluating_unchanged
from prunekit.surgery.layer_hooks import Forward, dense_readers, reading_inputs

_FEWEST_ROWS = 2000  # of a layer with few inputs
_MOST_INPUTS = 8192  # per output; the covariance of more takes over half a GiB


@dataclass(frozen=True, eq=False)
class Reading:
    """What one group of a layer reads: outputs (rows, o) = inputs (rows, p) @ weights + bias.

    `covariance` (p, p) and `mean` (p) are those of the inputs over positions and examples. `units`
    (p) are the ids of the units that the inputs belong to, 0 for those that cannot be removed.
    `spread` is the variance of the outputs, summed over all groups of the layer.
    """

    layer: str
    units: Tensor
    covariance: Tensor
    mean: Tensor
    weights: Tensor
    spread: float

    def relative(self, error: Tensor) -> Tensor:
        """Divide squared errors of this group's outputs by the variance of the layer's."""
        return error / max(self.spread, torch.finfo(error.dtype).tiny)

    def contributions(self, units: Tensor, centred: bool) -> Tensor:
        """Return the mean inner products of what units add to the outputs, relative to the spread.

        It is (n, n) for n unit ids; the diagonal holds mean squares. With `centred` the mean of
        every contribution is left out, as where the bias absorbs it.
        """
        moments = self.covariance
        if not centred:
            moments = moments + self.mean[:, None] * self.mean
        products = moments * (self.weights @ self.weights.T)
        place = torch.full((int(max(units.max(), self.units.max())) + 1,), len(units))
        place[units] = torch.arange(len(units))  # inputs of other units end in an extra row
        rows = place[self.units]
        total = products.new_zeros(len(units) + 1, len(rows)).index_add_(0, rows, products)
        total = products.new_zeros(len(units) + 1, len(units) + 1).index_add_(1, rows, total)
        return self.relative(total[:-1, :-1])


def measure_readings(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], examples: int, rows: float
) -> list[Reading]:
    """Run the network in evaluation mode, and return what the readers of its units read.

    About `rows` positions per input of a layer are sampled from all `examples` alike. Layers are
    left out that are never called, that read more than 8,192 inputs per output, or whose weights
    are passed to a function that is no linear map. All sums are in float64, on the CPU. Raises
    DataError for inputs that are not finite.
    """
    sums = {
        name: _Sums(name, LinearMap(layer), rows, examples)
        for name, layer in dense_readers(model, graph).items()
        if _is_measured(layer, name in graph.functional)
    }
    size = 0

    def read(name: str, forward: Forward, x: Tensor) -> Tensor:
        sums[name].add(x, forward, size)
        return x

    with (
        evaluating_unchanged(model),
        torch.no_grad(),
        reading_inputs(model, graph, sums, read),
    ):
        for batch in batches:
            size = len(batch)
            model(batch)
    return [reading for each in sums.values() if each.rows for reading in each.readings(graph)]


def _is_measured(layer: nn.Module, functional: bool) -> bool:
    if not isinstance(layer, nn.Linear if functional else WEIGHTED_LAYERS):
        return False
    return LinearMap(layer).unknowns <= _MOST_INPUTS


def measured_units(model: nn.Module, graph: ChannelGraph, readings: Iterable[Reading]) -> Tensor:
    """Return a mask over unit ids of those of which every reader has a reading."""
    measured, mask = set(), torch.zeros(graph.count, dtype=torch.bool)
    for reading in readings:
        measured.add(reading.layer)
        mask[reading.units] = True
    for name in dense_readers(model, graph):
        if name not in measured:
            mask[graph.ins[name].cpu()] = False
    return mask


@dataclass(eq=False)
class _Sums:
    """Sums of rows and of their products, for every group of one layer."""

    name: str
    linear: LinearMap
    wanted: float
    examples: int
    rows: int = 0
    _moments: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def add(self, x: Tensor, forward: Forward, size: int) -> None:
        """Add sampled rows of one call; `size` is the number of examples in the batch."""
        chosen, output = self._choose(x, forward, size)
        inputs = self.linear.input_rows(x, output, chosen.to(x.device)).double().cpu()
        if not bool(inputs.isfinite().all()):
            raise DataError(
                f"{self.name} reads NaN or infinity for some images; look for them in the images "
                "and in the weights, or choose a criterion that reads weights only"
            )
        if not self.rows:  # sums of squares stay small around the first mean
            self._shift = inputs.mean(1, keepdim=True)
        inputs = inputs - self._shift
        terms = [inputs.sum(1), inputs.mT @ inputs]
        before = self._moments or [torch.zeros_like(term) for term in terms]
        self._moments = [a + b for a, b in zip(before, terms, strict=True)]
        self.rows += len(chosen)

    def _choose(self, x: Tensor, forward: Forward, size: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the sampled rows, and an output with the right sizes."""
        layer: Any = self.linear.layer
        kernel = getattr(layer, "kernel_size", ())
        batched = x.ndim > len(kernel) + 1 if kernel else x.ndim > 1
        output = forward(x[:1] if batched else x)
        count = self.linear.count_rows(output) * (len(x) if batched else 1)
        total = count * self.examples / max(size, 1)
        share = max(self.wanted * self.linear.unknowns, _FEWEST_ROWS) / max(total, 1)
        if share >= 1:
            return torch.arange(count), output
        number = max(1, round(share * count))
        return torch.randperm(count, generator=self._generator)[:number], output

    def readings(self, graph: ChannelGraph) -> list[Reading]:
        """Return what the groups of the layer read."""
        first, second = (moment / self.rows for moment in self._moments)
        covariances = second - first[:, :, None] * first[:, None, :]
        means = first + self._shift[:, 0]
        weights = self.linear.matrix().double().cpu()
        spread = float(torch.einsum("gpo,gpq,gqo->", weights, covariances, weights))
        groups, inputs, _ = weights.shape
        ids = graph.ins[self.name].cpu().reshape(groups, -1)
        units = ids.repeat_interleave(inputs // ids.shape[1], 1)
        return [
            Reading(self.name, *parts, spread)
            for parts in zip(units, covariances, means, weights, strict=True)
        ]
