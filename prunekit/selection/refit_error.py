"""A selection from the errors that layers keep when they are refitted behind a cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from prunekit.console import track
from prunekit.errors import ConfigError
from prunekit.schema import Count, Positive, Range
from prunekit.selection.base import SELECTIONS, Scored, order_best_first, validate_scores
from prunekit.selection.candidates import ignored_groups
from prunekit.selection.losses import LossSelection, removal_ranks
from prunekit.selection.ranking import Limit, Ranking
from prunekit.surgery.elimination import Elimination
from prunekit.surgery.output_slopes import in_network_outputs, output_slopes
from prunekit.surgery.read_moments import Reading, measure_readings, measured_units

_BATCH = 100
_LEAST_SAVING = 1e-12  # so that units that save nothing go last


@SELECTIONS.register("refit_error")
@dataclass(frozen=True)
class RefitError(LossSelection):
    """The network within a budget whose layers keep the least error after they are refitted.

    For every group and every number of removed units, the lowest scores first, the squared error of
    all layers that read the group is computed with these layers refitted on the dense network's
    inputs, and weighted by what it changes in the network's outputs to first order
    (`output_slopes`). The sum of errors over groups is made small for the cost that is saved: units
    go in the order of the slopes of the lower convex hulls of error against cost (Lagrangian
    relaxation). That inputs change by other cuts is allowed for by a large ridge only. Training
    images are read without labels.
    """

    images: Annotated[Count, "training images, without labels, that errors are measured on"] = 1000
    rows: Annotated[float, Range(at_least=2), "positions sampled per input of a layer"] = 30
    ridge: Annotated[
        Positive, "pull of refitted weights to the old ones, relative to each input's variance"
    ] = 3.0

    def _ranks(self, scored: Scored) -> dict[str, Tensor]:
        """Leave out the groups that a layer reads which cannot be measured; they are kept whole."""
        graph, scores = scored.graph, validate_scores(scored.scores, scored.graph)
        ignored = ignored_groups(graph, self.budget.ignore)
        readings, known = self._readings(scored)
        units = {group.name: group.units.cpu() for group in graph.groups}
        scores = {
            name: score
            for name, score in scores.items()
            if name not in ignored and bool(known[units[name]].all())
        }
        if not scores:
            raise ConfigError(
                "selection=refit_error: in every group there is a unit that something other than "
                "convolutions and linear layers reads; choose another selection"
            )
        saved = self._savings(replace(scored, scores=scores))
        rises = {}
        for name, score in track(scores.items(), "refitting errors", len(scores)):
            errors = refit_errors(readings, units[name], score, self.ridge)
            rises[name] = hull_slopes(errors) / saved[name]
        return removal_ranks(rises, scores)

    def _readings(self, scored: Scored) -> tuple[list[Reading], Tensor]:
        """Return readings, and a mask over the ids of units of which every reader has one."""
        model, data = scored.model, scored.data
        if model is None or data is None or not data.train.size:
            raise ConfigError(
                "selection=refit_error measures errors on training images and there are none; "
                "give data (dataset=...), or choose another selection"
            )
        device = next((parameter.device for parameter in model.parameters()), "cpu")
        train, graph = data.train, scored.graph

        def batches() -> Iterator[Tensor]:
            return (x.to(device) for x, _ in train.sample(self.images, _BATCH))

        count = min(self.images, train.size)
        readings = measure_readings(model, graph, batches(), count, self.rows)
        layers = dict.fromkeys(reading.layer for reading in readings)
        readings = in_network_outputs(readings, output_slopes(model, graph, layers, batches()))
        return readings, measured_units(model, graph, readings)

    def _savings(self, scored: Scored) -> dict[str, float]:
        """Return for every group the share of the budgets' costs that one unit saves.

        It is the mean over all units of the group that may go, with all other groups whole.
        """
        pool = self.budget._pool(scored)
        limits = self.budget._limits(Ranking(pool), scored.cost)
        savings = {}
        for place, name in enumerate(pool.names):
            counts = pool.widths.clone()
            counts[place] = pool.min_counts[place]
            gone = int(pool.widths[place] - counts[place])
            saved = _saved(limits, pool.removed(counts)) / max(gone, 1)
            savings[name] = max(saved, _LEAST_SAVING)
        return savings


def _saved(limits: tuple[Limit, ...], removed: Tensor) -> float:
    """Return which share of the full network's costs goes, summed over limits."""
    full = torch.zeros_like(removed)
    return sum(1 - limit.cost_fn(removed) / max(limit.cost_fn(full), 1e-300) for limit in limits)


def refit_errors(readings: list[Reading], units: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """Return the relative error of a group's refitted readers with 0, 1, ... all units removed.

    Units go from the lowest score to the highest.
    """
    elimination, errors = Elimination(readings, units, ridge), [0.0]
    for number in order_best_first(scores).flip(0).tolist():
        errors.append(errors[-1] + max(elimination.increase(number), 0.0))
        elimination.remove(number)
    return torch.tensor(errors, dtype=torch.float64)


def hull_slopes(errors: Tensor) -> Tensor:
    """Return the slope of the lower convex hull of points (i, error i) behind each point but one.

    The slopes do not decrease.
    """
    values = errors.tolist()
    corners = [0]
    for place in range(1, len(values)):
        while len(corners) > 1 and _slope(values, corners[-1], place) <= _slope(
            values, corners[-2], corners[-1]
        ):
            corners.pop()
        corners.append(place)
    slopes = torch.empty(len(values) - 1, dtype=torch.float64)
    for start, end in pairwise(corners):
        slopes[start:end] = _slope(values, start, end)
    return slopes


def _slope(values: list[float], start: int, end: int) -> float:
    return (values[end] - values[start]) / (end - start)
