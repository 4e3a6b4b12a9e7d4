"""Criteria that read the outputs of ReLUs: APoZ and HRank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    require_data,
    scores_of_complete_groups,
)
from prunekit.errors import ConfigError
from prunekit.graph.ops.elementwise import is_relu6
from prunekit.graph.recording.steps import operation_name
from prunekit.graph.table import named_operation
from prunekit.modes import evaluating_unchanged

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

# maps a ReLU's output (examples, channels, ...) to a sum per channel and the number of summands
Statistic = Callable[[Tensor], tuple[Tensor, float]]

_HRANK_BATCH = 100  # as published; results do not depend on it
_NO_RELU = "meets a ReLU on all of its channels; use for instance criterion=taylor or l1_norm"


@CRITERIA.register("apoz")
@dataclass(frozen=True)
class APoZ(OnExamples):
    """The share of a unit's activations after ReLU that are not zero (Hu et al. 2016).

    APoZ itself is the share of zeros; the score is one minus it. It is measured before pooling, in
    evaluation mode, on `samples` training examples, not augmented. All ReLUs that a unit passes
    count, whether they are modules, functions or methods.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the shares; raises ConfigError if no group has a score.

        Groups with a unit that passes no ReLU have none.
        """
        batches = examples(require_data(data, "APoZ").train, self.samples, device)
        return relu_means(model, graph, (x for x, _ in batches), _count_nonzero)


def _count_nonzero(out: Tensor) -> tuple[Tensor, float]:
    return (out != 0).transpose(0, 1).flatten(1).sum(1), out.numel() / out.shape[1]


@CRITERIA.register("hrank")
@dataclass(frozen=True)
class HRank(OnExamples):
    """The average rank of a unit's feature maps after ReLU (Lin et al. 2020, eq. 5).

    A map is the (height, width) matrix of one channel for one of `samples` training examples, not
    augmented; 500 are five batches of 100, as published. The rank counts the singular values above
    the largest one times the larger side times the machine epsilon. A map with a single row or
    column, such as that of a linear layer, has rank one unless it is zero. A unit that passes
    several ReLUs gets the average over all of its maps. Since a rank is at most the smaller side of
    the map, scores only compare within a layer.
    """

    samples: Samples = 500

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the mean ranks; raises ConfigError if no group has a score.

        Groups with a unit that passes no ReLU have none.
        """
        train = require_data(data, "HRank").train
        batches = examples(train, self.samples, device, _HRANK_BATCH)
        total = -(-min(self.samples, train.size) // _HRANK_BATCH)
        images = (x for x, _ in track(batches, "rank of feature maps", total))
        return relu_means(model, graph, images, _sum_ranks)


def _sum_ranks(out: Tensor) -> tuple[Tensor, float]:
    if not bool(out.isfinite().all()):
        raise ConfigError(
            "HRank met feature maps that are not finite; look for nan or inf in the weights of the "
            "source model"
        )
    return map_ranks(out).sum(0), len(out)


def map_ranks(maps: Tensor) -> Tensor:
    """Return the ranks (examples, channels) of maps (examples, channels, height, width).

    Maps may have fewer dimensions; volumes are matrices of their first side by all others.
    """
    matrices = maps.flatten(3) if maps.dim() > 3 else maps.reshape(*maps.shape[:2], 1, -1)
    if min(matrices.shape[2:]) == 1:
        return (matrices != 0).flatten(2).any(2).long()
    ranks: Tensor = torch.linalg.matrix_rank(matrices)
    return ranks


def relu_means(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], statistic: Statistic
) -> Scores:
    """Return the mean of a statistic of every unit's ReLU outputs, in evaluation mode.

    All ReLUs that a unit passes count, whether they are modules, functions or methods. Groups with
    a unit that passes none have no score. Raises ConfigError if no group has one, and where the
    forward pass has other ReLUs than when the network was traced.
    """
    sums = _ReLUSums(graph, statistic)
    with evaluating_unchanged(model), torch.no_grad():
        for x in batches:
            with sums:
                model(x)
            sums.finish_pass(type(model).__name__)
    mean = sums.total / sums.counts.clamp_min(1)
    return scores_of_complete_groups(graph, mean, sums.counts, _NO_RELU)


class _ReLUSums(TorchFunctionMode):
    """Sums a statistic of the outputs of ReLUs by unit, while the mode is active.

    The units of each ReLU are known from the trace, in the order of execution.
    """

    def __init__(self, graph: ChannelGraph, statistic: Statistic) -> None:
        super().__init__()
        self.rectified, self.statistic, self.passed = graph.rectified, statistic, 0
        self.total = torch.zeros(graph.count, dtype=torch.float64)
        self.counts = torch.zeros(graph.count, dtype=torch.float64)

    def finish_pass(self, network: str) -> None:
        """Prepare for the next pass; raises ConfigError where the number of ReLUs differs."""
        passed, self.passed = self.passed, 0
        if passed != len(self.rectified):
            raise ConfigError(
                f"{network} ran through {passed} ReLUs, and through {len(self.rectified)} when it "
                "was traced: its forward depends on its input; use for instance criterion=taylor"
            )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation_name(func)
        entry = named_operation(name)
        if entry is not None and (entry.is_relu or is_relu6(name, kwargs)):
            units = self.rectified[self.passed] if self.passed < len(self.rectified) else None
            self.passed += 1
            if units is not None:
                self._add(out, units)
        return out

    def _add(self, out: Tensor, units: Tensor) -> None:
        sums, count = self.statistic(out)
        self.total.index_add_(0, units, sums.double().cpu())
        self.counts.index_add_(0, units, torch.full((len(units),), count).double())
