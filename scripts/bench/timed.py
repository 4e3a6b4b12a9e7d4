"""Variants of networks timed in turns; what stands in a file of times is not timed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from prunekit.console import say
from prunekit.criteria import L1Norm
from prunekit.errors import ExportError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.methods.hinge import FoldedCost
from prunekit.runs.files import write_csv
from prunekit.selection import MacsTarget
from prunekit.surgery import Narrow
from scripts.bench.lines import Row, read

Networks = dict[str, nn.Module]
Kinds = Mapping[str, Callable[[str], object]]


def complete(
    path: Path,
    rows: list[Row],
    keys: Mapping[str, Sequence[Row]],
    variants: Callable[[str], Networks],
    timed: Callable[[Networks, Row], list[Row]],
) -> list[Row]:
    """Return the rows with those that are missing, and write them after every measurement.

    `keys` are, by network, the columns that make a row another measurement.
    """
    for name, settings in keys.items():
        missing = [key for key in settings if not any(key.items() <= row.items() for row in rows)]
        networks = variants(name) if missing else {}
        for key in missing:
            say(f"{name} on {key['engine']}: {', '.join(networks)} ...")
            try:
                rows += timed(networks, key)
            except ExportError as error:
                say(f"  not timed: {error}")
            write_csv(path, rows)
    return rows


def earlier(path: Path, kinds: Kinds, fresh: bool) -> list[Row]:
    """Return the rows of the file, none for a fresh start."""
    return [] if fresh else read(path, kinds)


def cut(
    model: nn.Module,
    example: Tensor,
    keep: float,
    layers: Sequence[str] | None = None,
    round_to: int = 1,
) -> nn.Module:
    """Cut in place by norms of filters: the same share of every layer, or of these alone."""
    graph = ChannelGraph.trace(model, example)
    scores = L1Norm().scores(model, graph, None)
    chosen = scores if layers is None else {name: scores[name] for name in layers}
    selection = MacsTarget(keep=keep, scope="local", round_to=round_to)
    masks = selection.choose(chosen, graph, FoldedCost(model, graph))
    Narrow.of(graph, masks.removed).apply(model)
    return model


def macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-adds of one example."""
    return CostModel(model, ChannelGraph.trace(model, example)).macs()


def parameters(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
