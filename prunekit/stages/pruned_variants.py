"""Accuracy right after pruning, four ways: a collapse there is often one of statistics only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from prunekit.data import Data
from prunekit.engine import Pruning
from prunekit.modes import duplicate
from prunekit.runs.report import Metrics
from prunekit.stages.common import quality
from prunekit.stages.runtime import Runtime
from prunekit.training import keeps_statistics, recompute_statistics

IMAGES = 2048  # training images that statistics are recomputed on


@dataclass(frozen=True, eq=False)
class Variant:
    """A pruned network, and its test and validation accuracy."""

    model: nn.Module
    quality: Metrics


def written(pruning: Pruning, statistics: str) -> str:
    """The name of the network that settings ask for: what the last cut did, and to statistics."""
    ending = "_recomputed" if statistics == "recomputed" else ""
    return ("absorbed" if pruning.absorbed else "dropped") + ending


def compared(model: nn.Module, data: Data) -> tuple[str, ...]:
    """Names of the networks worth comparing: none without images, two without batch norm."""
    if not (data.test.size and data.train.size):
        return ()
    plain = ("dropped", "absorbed")
    again = tuple(f"{name}_recomputed" for name in plain)
    return (*plain, *again) if keeps_statistics(model) else plain


def variants(
    pruning: Pruning, names: Collection[str], data: Data, runtime: Runtime
) -> dict[str, Variant]:
    """The networks of these names, with constants dropped or absorbed, statistics recomputed."""
    plain: dict[str, nn.Module] = {}
    found = {}
    for name in names:
        kind, _, again = name.partition("_")
        if kind not in plain:
            plain[kind] = pruning.with_constants(absorb=kind == "absorbed")
        model = _recomputed(plain[kind], data, runtime) if again else plain[kind]
        found[name] = Variant(model, quality(model, data, runtime))
    return found


def figures(found: Mapping[str, Variant], names: Collection[str]) -> Metrics:
    """Test and validation accuracy of the compared networks as metrics."""
    return {
        f"{prefix}/{name}": found[name].quality[key]
        for prefix, key in (("after", "top1"), ("val_after", "val_top1"))
        for name in names
        if key in found[name].quality
    }


def _recomputed(model: nn.Module, data: Data, runtime: Runtime) -> nn.Module:
    """A copy with batch-norm statistics of training images."""
    copy = duplicate(model)
    recompute_statistics(copy, data.train, IMAGES, runtime.device)
    return copy


def accuracy_note(metrics: Metrics) -> list[str]:
    """The figures in a sentence, where there are any."""
    if not metrics:
        return []

    def pair(end: str) -> str:
        dropped, absorbed = (metrics[f"after/{name}{end}"] for name in ("dropped", "absorbed"))
        return f"{dropped:.2f} % with constants dropped, {absorbed:.2f} % absorbed"

    again = ""
    if "after/dropped_recomputed" in metrics:
        again = f"; with batch-norm statistics recomputed {pair('_recomputed')}"
    return [f"top-1 before fine-tuning: {pair('')}{again}"]
