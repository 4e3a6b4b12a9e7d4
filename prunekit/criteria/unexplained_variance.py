"""The variance of a unit that the other units of its readers do not explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prunekit.criteria.base import CRITERIA
from prunekit.criteria.on_readings import OnReadings
from prunekit.surgery.elimination import Elimination
from prunekit.surgery.read_moments import Reading


@CRITERIA.register("unexplained_variance")
@dataclass(frozen=True)
class UnexplainedVariance(OnReadings):
    """The error of regressing a unit on all others, weighted by the squares of reading weights.

    The variance that the other inputs A of a layer leave of one of them is 1 / (A^-1)_ii, which is
    its variance times 1 - R^2. A unit of several inputs, such as the patch of a convolution, is
    regressed on those of other units only. A linear combination of other units scores 0, and so
    does each of two equal units: the score is that of removing one unit alone.
    """

    comparable: ClassVar[bool] = True

    def _group_scores(self, readings: list[Reading], units: Tensor) -> Tensor:
        return Elimination(readings, units, ridge=0).unexplained()
