"""The variance of what a unit adds to the layers behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunekit.criteria.base import CRITERIA
from prunekit.criteria.on_readings import OnReadings, contributions
from prunekit.surgery.read_moments import Reading


@CRITERIA.register("contribution_variance")
@dataclass(frozen=True)
class ContributionVariance(OnReadings):
    """The variance of what a unit adds to the outputs of the layers that read it.

    This is their squared error when the unit alone is replaced by its mean, which moves into the
    biases (variance-based pruning, Berisha et al. 2025, who leave out the weights that read it).
    """

    comparable: ClassVar[bool] = True

    def _group_scores(self, readings: list[Reading], units: Tensor) -> Tensor:
        return contributions(readings, units, centred=True).diagonal().clamp_min(0)
