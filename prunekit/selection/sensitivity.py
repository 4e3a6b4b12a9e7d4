"""Ratios from sensitivity curves: every group gives as much as costs it the same accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.checks import choice, instance
from prunekit.errors import ArtifactError, ConfigError, listed, one_of
from prunekit.measure import CostModel
from prunekit.selection.base import Aim, Masks, Selection, best_first, checked
from prunekit.selection.budgets import Budget
from prunekit.selection.curves import Curve, curves_file, read_curves
from prunekit.selection.patterns import ignored

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph
    from prunekit.measure.latency_table import Track

_LISTED = 4


@dataclass(frozen=True)
class Sensitivity(Selection):
    """The largest network within a budget whose groups all stay within one loss of accuracy.

    A unit goes at the loss that the curve of its group shows when it and all worse units of the
    group are gone; scores decide the order within a group only. The lowest losses of all groups go
    first, equal ones by the share of the group, until `budget` is met: that is bisection on a
    common tolerance. Losses compare as they are, so the budget's `normalise` is left out. `path` is
    a csv, a stage or a run; None is the sensitivity stage of the same run, which prune fills in.
    """

    budget: Budget
    path: str | Path | None = None
    min_keep: int = field(init=False)  # the budget says both
    rounds: int = field(init=False)

    def __post_init__(self) -> None:
        instance("selection.budget", self.budget, Budget)
        choice("selection.budget.scope", self.budget.scope, ("global",))
        if not isinstance(self.path, str | Path | None):
            raise ConfigError(f"selection.path={self.path!r} is no path; quote it if it is one")
        found = {"budget": replace(self.budget, normalise=None)}
        found |= {key: getattr(self.budget, key) for key in ("min_keep", "rounds")}
        for key, value in found.items():
            object.__setattr__(self, key, value)
        super().__post_init__()

    def within(self, run: Path) -> Sensitivity:
        """The curves of the run's own sensitivity stage, unless others are given."""
        return self if self.path is not None else replace(self, path=run / "sensitivity")

    def files(self) -> Mapping[str, Path]:
        """The curves; ArtifactError where they are missing or unfinished."""
        return {} if self.path is None else {"curves": curves_file(self.path)}

    def choose(self, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel) -> Masks:
        """ArtifactError where curves and network differ, ConfigError for a budget out of reach."""
        return self.budget.choose(self.ranks(scores, graph), graph, cost)

    def costs(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Tensor | tuple[Tensor, ...],
        device: str = "cpu",
        track: Track | None = None,
    ) -> CostModel:
        """The cost model of the budget."""
        return self.budget.costs(model, graph, example, device, track)

    def aims(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[Aim, ...]:
        """What the budget asked for and what there is."""
        return self.budget.aims(masks, self.ranks(scores, graph), graph, cost)

    def collapsed(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph
    ) -> tuple[str, ...]:
        """The layers all of whose units come before another one that went."""
        return self.budget.collapsed(masks, self.ranks(scores, graph), graph)

    def notes(
        self, masks: Masks, scores: Mapping[str, Tensor], graph: ChannelGraph, cost: CostModel
    ) -> tuple[str, ...]:
        """Also the tolerance, and the group that sets it."""
        told = self.budget.notes(masks, self.ranks(scores, graph), graph, cost)
        lost = {name: loss for name, loss in self._lost(masks).items() if loss > 0}
        if not lost:
            return (*told, "sensitivity: no group loses accuracy by itself")
        worst = max(lost, key=lambda name: lost[name])
        return (
            *told,
            f"sensitivity: by its curve every group alone costs at most {lost[worst]:.2f} points "
            f"of validation accuracy, {worst} the most; together they cost more",
        )

    def ranks(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Tensor]:
        """For every unit its place in the order in which units go, equal where nothing decides."""
        scores = checked(scores, graph)
        curves = self._curves(scores, graph)
        names = [name for name in scores if name in curves]
        each = [curves[name].losses() for name in names]
        shares = [torch.arange(1, len(loss) + 1) / len(loss) for loss in each]
        pairs = torch.stack([torch.cat(each), torch.cat(shares).double()], dim=1)
        _, places = pairs.unique(dim=0, return_inverse=True)  # sorted by loss, then by share
        found = {}
        for name, place in zip(names, places.split([len(loss) for loss in each]), strict=True):
            found[name] = torch.empty(len(place), dtype=torch.float64)
            found[name][best_first(scores[name]).flip(0)] = place.double()
        return found

    def _lost(self, masks: Masks) -> dict[str, float]:
        """Points that every group costs by its curve."""
        gone = {name: int((~mask).sum()) for name, mask in masks.items()}
        return {
            name: float(curve.losses()[gone[name] - 1])
            for name, curve in read_curves(self._place()).items()
            if gone.get(name)
        }

    def _curves(self, scores: Mapping[str, Tensor], graph: ChannelGraph) -> dict[str, Curve]:
        """The curves, which must be of this network and of all groups that may be narrowed."""
        place, widths = self._place(), {group.name: len(group.units) for group in graph.groups}
        curves = read_curves(place)
        for name, curve in curves.items():
            if name not in widths:
                raise ArtifactError(
                    f"{place} has a curve of {name}, which this network has not; "
                    f"{one_of(name, widths)}"
                )
            if curve.units != widths[name]:
                raise ArtifactError(
                    f"{place} is of another network: {name} has {curve.units} units there and "
                    f"{widths[name]} here"
                )
        open_ = [name for name in scores if name not in ignored(graph, self.budget.ignore)]
        lacking = [name for name in open_ if name not in curves]
        if lacking:
            raise ArtifactError(
                f"{place} has no curve of {listed(lacking, _LISTED)}; run prunekit sensitivity "
                "for all groups, or name those in selection.budget.ignore"
            )
        return curves

    def _place(self) -> str | Path:
        if self.path is None:
            raise ConfigError(
                "selection.path is not set; give a run with a sensitivity stage, or its csv"
            )
        return self.path
