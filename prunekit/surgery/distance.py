"""The distance of a narrow network from the dense one, which is what a user loses by the cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Example
from prunekit.modes import evaluating
from prunekit.surgery.equivalence import Gap, check_inputs, compute_outputs, float_tensors, rounding

_PERCENT = 1e-4  # relative distances from here on are printed in percent


@dataclass(frozen=True)
class Distance:
    """How far the outputs of a narrow network are from those of the dense one, in eval mode.

    `gap` is None where the outputs cannot be compared, for the reason in `note`. `exact` says that
    the networks are equal but for rounding.
    """

    gap: Gap | None
    exact: bool = False
    note: str = ""

    def __str__(self) -> str:
        if self.gap is None:
            return f"distance to the dense network not measured: {self.note}"
        relative = self.gap.relative
        share = f"{relative:.2%}" if relative >= _PERCENT else f"{relative:.1e}"
        return f"narrow and dense network differ by {share} of the largest output in eval mode"


def measure_distance(model: nn.Module, narrow: nn.Module, batch: Example) -> Distance:
    """Compare what the dense and the narrow network put out in eval mode.

    Raises SurgeryError where one of them fails on the batch.
    """
    reference = outputs_in_eval(model, batch, "the dense network")
    return distance_between(outputs_in_eval(narrow, batch, "the narrow network"), reference)


def outputs_in_eval(model: nn.Module, batch: Example, who: str) -> Any:
    """Return what a network puts out in eval mode; SurgeryError with its name where it fails."""
    with evaluating(model):
        return compute_outputs(model, check_inputs(batch), who)


def distance_between(outputs: Any, reference: Any) -> Distance:
    """Return the distance of the outputs of two networks on one batch."""
    try:
        gap = Gap.between(outputs, reference)
    except SurgeryError as error:  # as of detectors, which find other numbers of things
        return Distance(None, note=str(error))
    limit = max(rounding(tensor.dtype) for tensor in float_tensors(reference))
    return Distance(gap, exact=not gap.empty and gap.relative <= limit)
