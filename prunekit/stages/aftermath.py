"""Accuracy right after pruning, four ways: a collapse there is often one of statistics only."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from prunekit.data import Data
from prunekit.modes import duplicate
from prunekit.runs.report import Metrics
from prunekit.stages.base import Runtime
from prunekit.stages.parts import quality
from prunekit.stages.rounds import Rounds
from prunekit.training import keeps_statistics, recompute_statistics

IMAGES = 2048  # training images that statistics are recomputed on


@dataclass(frozen=True)
class Aftermath:
    """Test and validation accuracy of a pruned network by what was done to it, and in words."""

    metrics: Metrics
    notes: tuple[str, ...]


def recomputed(model: nn.Module, data: Data, runtime: Runtime) -> nn.Module:
    """A copy with batch-norm statistics of training images."""
    copy = duplicate(model)
    recompute_statistics(copy, data.train, IMAGES, runtime.device)
    return copy


def aftermath(way: Rounds, data: Data, runtime: Runtime) -> Aftermath:
    """Accuracy with constants dropped and absorbed, statistics kept and recomputed.

    Nothing where there are no images; statistics stay where there is no batch norm.
    """
    if not (data.test.size and data.train.size):
        return Aftermath({}, ())
    chosen, other = ("absorbed", "dropped") if way.absorbed else ("dropped", "absorbed")
    networks = {chosen: way.model, other: way.again(absorb=not way.absorbed)}
    if keeps_statistics(way.model):
        again = {f"{n}_recomputed": recomputed(m, data, runtime) for n, m in networks.items()}
        networks |= again
    found = {name: quality(network, data, runtime) for name, network in networks.items()}
    keys = {"after": "top1", "val_after": "val_top1"}
    metrics: Metrics = {
        f"{prefix}/{name}": one[key]
        for prefix, key in keys.items()
        for name, one in found.items()
        if key in one
    }
    return Aftermath(metrics, (_told(metrics),))


def _told(metrics: Metrics) -> str:
    def pair(end: str) -> str:
        dropped, absorbed = (metrics[f"after/{name}{end}"] for name in ("dropped", "absorbed"))
        return f"{dropped:.2f} % with constants dropped, {absorbed:.2f} % absorbed"

    again = ""
    if "after/dropped_recomputed" in metrics:
        again = f"; with batch-norm statistics recomputed {pair('_recomputed')}"
    return f"top-1 before fine-tuning: {pair('')}{again}"
