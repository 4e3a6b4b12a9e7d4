"""ThiNet: units go greedily by what their absence changes in the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from prunekit.criteria.base import CRITERIA
from prunekit.criteria.on_readings import OnReadings, contributions
from prunekit.surgery.read_moments import Reading


@CRITERIA.register("thinet")
@dataclass(frozen=True)
class ThiNet(OnReadings):
    """The rank at which a unit goes if units are removed greedily (Luo, Wu and Lin 2017, eq. 6).

    Each step removes the unit that makes the squared sum of all removed contributions to the
    outputs of the layers behind least. Nothing is refitted in between. Contributions count without
    their means where the cut absorbs constants, and with them as published otherwise.
    """

    absorb: Annotated[
        bool | None,
        "if constants of removed units stay in the next layer; null: as in the cut",
    ] = None

    def for_cut(self, absorbs: bool) -> ThiNet:
        """Return the criterion for what this cut removes, unless `absorb` says it."""
        return self if self.absorb is not None else replace(self, absorb=absorbs)

    def _group_scores(self, readings: list[Reading], units: Tensor) -> Tensor:
        return greedy_ranks(contributions(readings, units, self.absorb is not False))


def greedy_ranks(products: Tensor) -> Tensor:
    """Return the step, from 0 on, at which each item joins the set with the least squared sum.

    `products` are inner products of the items.
    """
    ranks = torch.zeros(len(products), dtype=torch.float64)
    errors = products.diagonal().clone()  # of the set so far with each item, up to a constant
    for step in range(len(products)):
        chosen = int(errors.argmin())
        ranks[chosen] = step
        errors += 2 * products[:, chosen]
        errors[chosen] = torch.inf
    return ranks
