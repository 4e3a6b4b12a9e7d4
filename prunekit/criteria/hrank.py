"""A criterion that looks at how much a feature map can say: its rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.criteria.activations import OnExamples, Samples, examples, training_data
from prunekit.criteria.base import CRITERIA, Scores
from prunekit.criteria.relu_outputs import relu_means
from prunekit.errors import ConfigError

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_BATCH = 100  # as published; the result does not depend on it


@CRITERIA.register("hrank")
@dataclass(frozen=True)
class HRank(OnExamples):
    """The average rank of a unit's feature maps after ReLU (Lin et al. 2020, eq. 5).

    A map is the matrix (height, width) of one channel for one of `samples` training examples, not
    augmented; 500 are five batches of 100, as published. Ranks are numerical: singular values
    above the largest times the larger side times the rounding unit. A map of one row or column, as
    linear layers make them, has rank one where it is not zero. A unit that meets several ReLUs has
    the average over all of its maps. No rank is above the sides of the map, so scores compare
    within a layer only.
    """

    samples: Samples = 500

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups with a unit that meets no ReLU have no score; ConfigError if none has."""
        train = training_data(data, "HRank").train
        batches = examples(train, self.samples, device, _BATCH)
        total = -(-min(self.samples, train.size) // _BATCH)
        images = (x for x, _ in track(batches, "rank of feature maps", total))
        return relu_means(model, graph, images, _ranks)


def _ranks(out: Tensor) -> tuple[Tensor, float]:
    """The sum over examples of the ranks of every channel's map, and how many maps that were."""
    if not bool(out.isfinite().all()):
        raise ConfigError(
            "HRank met feature maps that are not finite; look for nan or inf in the weights of the "
            "source model"
        )
    return map_ranks(out).sum(0), len(out)


def map_ranks(maps: Tensor) -> Tensor:
    """Ranks (examples, channels) of maps (examples, channels, height, width), or of fewer sizes.

    Volumes are matrices of their first side by all others.
    """
    matrices = maps.flatten(3) if maps.dim() > 3 else maps.reshape(*maps.shape[:2], 1, -1)
    if min(matrices.shape[2:]) == 1:
        return (matrices != 0).flatten(2).any(2).long()
    return torch.linalg.matrix_rank(matrices)
