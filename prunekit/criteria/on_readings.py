"""Criteria that judge units by what layers behind lose, from second moments of what these read."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from prunekit.criteria.base import (
    OnExamples,
    Scores,
    examples,
    require_data,
    scores_of_complete_groups,
)
from prunekit.schema import Range
from prunekit.surgery.read_moments import Reading, measure_readings, measured_units

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_BATCH = 100
_UNREAD = "is read by convolutions and linear layers only; use for instance criterion=l1_norm"
RowsPerInput = Annotated[float, Range(at_least=2), "positions sampled per input of a layer"]


@dataclass(frozen=True)
class OnReadings(OnExamples):
    """A criterion from second moments of what every convolution and linear layer reads.

    No labels are read. Errors of a layer's outputs are relative to the variance of these outputs,
    and summed over all layers that read a unit; a depthwise convolution passes its units on to the
    layers behind it. About `rows` positions per input of a layer are sampled from the examples.
    """

    rows: RowsPerInput = 30

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Run once over the examples; raises ConfigError if no group has a score.

        Groups with units that a layer reads which cannot be measured have none.
        """
        train = require_data(data, type(self).__name__).train
        batches = (x for x, _ in examples(train, self.samples, device, _BATCH))
        count = min(self.samples, train.size)
        readings = measure_readings(model, graph, batches, count, self.rows)
        total = torch.zeros(graph.count, dtype=torch.float64)
        known = measured_units(model, graph, readings)
        for group in graph.groups:
            units = group.units.cpu()
            if bool(known[units].all()):
                total[units] = self._group_scores(readings, units)
        return scores_of_complete_groups(graph, total, known, _UNREAD)

    @abstractmethod
    def _group_scores(self, readings: list[Reading], units: Tensor) -> Tensor:
        """Return a score for every unit of a group; some of the readings read them."""


def contributions(readings: list[Reading], units: Tensor, centred: bool) -> Tensor:
    """Return the inner products of what units add to all of their readers, (units, units)."""
    parts = (r for r in readings if bool(torch.isin(r.units, units).any()))
    total = torch.zeros(len(units), len(units), dtype=torch.float64)
    for reading in parts:
        total += reading.contributions(units, centred)
    return total
