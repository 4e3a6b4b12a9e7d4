"""Criteria that compare a unit with the others of its layer: distances, and shares of the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores
from prunekit.criteria.weights import by_filters, filter_norms, filters

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


@CRITERIA.register("fpgm")
@dataclass(frozen=True)
class FPGM(Criterion):
    """The sum of distances to the other filters of the layer (He et al. 2019, eq. 6).

    A filter near the geometric median of its layer is the easiest to make up for. Over all layers
    that produce a unit the sums are added.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Euclidean distances of filters without their biases."""
        rows = ((name, found.double()) for name, found in filters(model, graph))
        distances = {name: torch.cdist(found, found).sum(1) for name, found in rows}
        return by_filters(graph, distances)


@CRITERIA.register("lamp")
@dataclass(frozen=True)
class LAMP(Criterion):
    """The squared norm of a unit over that of all units of its group that are no smaller.

    Lee et al. 2021, eq. 5, made for single weights, here for whole units; a group's best unit
    scores 1. Made to be compared between layers as it is: selections should not normalise it.
    """

    comparable: ClassVar[bool] = True

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Squares of the filters of all layers that produce a unit are added; no biases."""
        norms = filter_norms(model, graph, 2)
        squares = {name: norm.square() for name, norm in norms.items()}
        scores = by_filters(graph, squares)
        return {name: _share_of_larger(score) for name, score in scores.items()}


def _share_of_larger(squares: Tensor) -> Tensor:
    """Every entry over the sum of the entries that are no smaller; 0 where all are zero."""
    ordered, _ = squares.sort()
    tails = ordered.flip(0).cumsum(0).flip(0)  # sums from an entry to the largest
    first = torch.searchsorted(ordered, squares)  # of equal entries all count
    return squares / tails[first].clamp_min(torch.finfo(squares.dtype).tiny)
