"""Selections that hand a loss for every unit to a budget, in place of scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from torch import Tensor

from prunekit.selection.base import Scored, Selected, Selection, order_best_first
from prunekit.selection.budgets import Budget, MacsTarget


@dataclass(frozen=True)
class LossSelection(Selection):
    """The largest network within a budget, in which the units of the lowest losses are removed.

    Scores only decide the order within a group. Losses compare between groups, so `normalise` and
    `scope` of the budget are not used.
    """

    budget: Annotated[Budget, "budget that ends the search"] = field(default_factory=MacsTarget)
    min_keep: int = field(init=False)  # both are taken from the budget
    rounds: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {
            "budget": replace(self.budget, normalise=None, scope="global"),
            "min_keep": self.budget.min_keep,
            "rounds": self.budget.rounds,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def select(self, scored: Scored) -> Selected:
        """Apply the budget to the losses; raises ConfigError for a budget out of reach."""
        return self._noted(self.budget.select(replace(scored, scores=self._ranks(scored))))

    def _noted(self, selected: Selected) -> Selected:
        """Add what the losses say of the result of the budget."""
        return replace(
            selected,
            notes=(*selected.notes, *self._notes(selected.keep)),
            recount=lambda keep: self._noted(selected.after(keep)),
        )

    @abstractmethod
    def _ranks(self, scored: Scored) -> dict[str, Tensor]:
        """Return a score per unit of every group, in the order in which units are removed."""

    def _notes(self, keep: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Return sentences on what the kept units lose."""
        return ()


def removal_ranks(losses: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return for every unit its rank by loss, then by share of the group; ties rank equal.

    `losses` are those of the first, second, ... unit of each group that goes, the lowest score
    first; they must not decrease.
    """
    shares = [torch.arange(1, len(loss) + 1) / len(loss) for loss in losses.values()]
    pairs = torch.stack([torch.cat([*losses.values()]), torch.cat(shares).double()], dim=1)
    _, places = torch.unique(pairs, dim=0, return_inverse=True)  # sorted by loss, then share
    parts = torch.split(places, [len(loss) for loss in losses.values()])
    ranks = {}
    for name, part in zip(losses, parts, strict=True):
        ranks[name] = torch.empty(len(part), dtype=torch.float64)
        ranks[name][order_best_first(scores[name]).flip(0)] = part.double()
    return ranks
