"""A criterion that looks at how much a feature map can say: its rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.console import track
from prunekit.criteria.base import (
    CRITERIA,
    OnExamples,
    Samples,
    Scores,
    examples,
    seen_groups,
    training_data,
)
from prunekit.errors import ConfigError
from prunekit.graph.ops.activations import is_relu6
from prunekit.graph.recording.steps import operation_name
from prunekit.graph.table import of_name
from prunekit.modes import consulting

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_BATCH = 100  # as published; the result does not depend on it


@CRITERIA.register("apoz")
@dataclass(frozen=True)
class APoZ(OnExamples):
    """The share of a unit's activations that are not zero after ReLU (Hu et al. 2016).

    APoZ itself is the share of zeros; the score is one minus it. Measured before pooling on
    `samples` training examples, not augmented, in evaluation mode. ReLUs are caught whether
    they are modules, functions or methods; a unit that meets several counts them all.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups with a unit that meets no ReLU have no score; ConfigError if none has."""
        batches = examples(training_data(data, "APoZ").train, self.samples, device)
        return relu_means(model, graph, (x for x, _ in batches), _nonzero)


def _nonzero(out: Tensor) -> tuple[Tensor, float]:
    """How many activations of every channel are not zero, and out of how many."""
    return (out != 0).transpose(0, 1).flatten(1).sum(1), out.numel() / out.shape[1]


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


# of a ReLU's output (examples, channels, ...): a sum per channel, and over how many things it is
Count = Callable[[Tensor], tuple[Tensor, float]]

_NO_RELU = "meets a ReLU on all of its channels; use for instance criterion=taylor or l1_norm"


def relu_means(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], count: Count
) -> Scores:
    """The mean of what `count` sees of every unit at ReLUs, in evaluation mode.

    ReLUs are caught whether they are modules, functions or methods; a unit that meets several has
    the mean over all. Groups with a unit that meets none have no score; ConfigError if no group
    has one, or where a forward meets other ReLUs than when it was traced.
    """
    met = _AtReLUs(graph, count)
    with consulting(model), torch.no_grad():
        for x in batches:
            with met:
                model(x)
            met.finish(type(model).__name__)
    return seen_groups(graph, met.total / met.seen.clamp_min(1), met.seen, _NO_RELU)


class _AtReLUs(TorchFunctionMode):
    """Adds up what `count` says of the output of each ReLU, per unit, in order of execution."""

    def __init__(self, graph: ChannelGraph, count: Count) -> None:
        super().__init__()
        self.rectified, self.count, self.met = graph.rectified, count, 0
        self.total = torch.zeros(graph.count, dtype=torch.float64)
        self.seen = torch.zeros(graph.count, dtype=torch.float64)

    def finish(self, network: str) -> None:
        """Begin again; ConfigError where a forward met more or fewer ReLUs than when traced."""
        met, self.met = self.met, 0
        if met != len(self.rectified):
            raise ConfigError(
                f"{network} ran through {met} ReLUs, and through {len(self.rectified)} when it was "
                "traced: its forward depends on its input; use for instance criterion=taylor"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation_name(func)
        entry = of_name(name)
        if entry is not None and (entry.rectifies or is_relu6(name, kwargs)):
            units = self.rectified[self.met] if self.met < len(self.rectified) else None
            self.met += 1
            if units is not None:
                self._add(out, units)
        return out

    def _add(self, out: Tensor, units: Tensor) -> None:
        found, things = self.count(out)
        self.total.index_add_(0, units, found.double().cpu())
        self.seen.index_add_(0, units, torch.full((len(units),), things).double())
