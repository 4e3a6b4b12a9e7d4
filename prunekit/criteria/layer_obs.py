"""Layer-wise optimal brain surgeon, for whole units: what readers lose when they are refitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.criteria.base import CRITERIA
from prunekit.criteria.on_readings import OnReadings
from prunekit.schema import Positive
from prunekit.surgery.elimination import Elimination, greedy_order
from prunekit.surgery.read_moments import Reading


@CRITERIA.register("layer_obs")
@dataclass(frozen=True)
class LayerOBS(OnReadings):
    """The rise of the error of refitted readers at the step at which a unit goes.

    Units of a group go one after another, each time the one whose removal costs least once the
    weights on all inputs that are left are refitted (Dong, Chen and Pan 2017, layer-wise optimal
    brain surgeon, here for whole units). A unit scores the largest rise up to its own step, so that
    scores keep the order. With `reconstruct=least_squares` the cut refits these layers likewise,
    on inputs that cuts in front have changed. The ridge allows for these changes, as for noise of
    `ridge` times the variance of an input, and is far above that of the refit.
    """

    comparable: ClassVar[bool] = True
    ridge: Annotated[
        Positive, "pull of refitted weights to the old ones, relative to each input's variance"
    ] = 3.0

    def _group_scores(self, readings: list[Reading], units: Tensor) -> Tensor:
        scores, largest = torch.zeros(len(units), dtype=torch.float64), 0.0
        for number, rise in greedy_order(Elimination(readings, units, self.ridge)):
            largest = max(largest, rise)
            scores[number] = largest
        return scores
