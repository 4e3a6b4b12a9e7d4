"""The command that shows the channels of a network; it trains and writes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prunekit.build import Settings, build
from prunekit.console import say, table
from prunekit.criteria import Scores
from prunekit.engine import Traced
from prunekit.methods.hinge import Hinged
from prunekit.runs.rundir import model_file
from prunekit.selection import PerLayer, Scored
from prunekit.stages.network import FromNetwork, insert_matrices, insert_selectors, load_source
from prunekit.stages.pipeline import Request
from prunekit.stages.settings import OverNorms

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)  # kept of every group, for the table of predicted costs


@dataclass(frozen=True)
class Inspect(FromNetwork):
    """The parts of the settings that `prunekit inspect` reads."""

    over_norms: OverNorms


def inspect(settings: Settings, directory: str) -> None:
    """Print the channel groups, what is frozen and why, and the cost at several widths."""
    parts, request = Inspect.of(settings), Request.of(settings)
    request.runtime.apply(parts.seed)
    if request.root.source is not None:
        model = load_source(model_file(request.root.source), request.runtime).model
    else:
        model = build(parts.dense.arch, "model")
    example = torch.zeros(1, *parts.dataset.shape)
    if parts.channel_selection:
        insert_selectors(model, example)
    if insert_matrices(model, example, parts.placement):
        sites = [(n, m.site) for n, m in model.named_modules() if isinstance(m, Hinged)]
        lines = [(n, s.block, " and ".join(s.sides), s.start or "is the matrix") for n, s in sites]
        table("matrices", ("layer", "block", "what may vanish", "start"), lines)
    traced = Traced.of(model, example, over_norms=parts.over_norms)
    graph = traced.graph
    table("channel groups", ("group", "units", "made by", "read by"), graph.table())
    for line in graph.frozen_lines():
        say(f"stays: {line}")
    reasons = {reason for text in graph.frozen.values() for reason in text.split("; ")}
    for note in graph.notes:
        if not any(reason in note for reason in reasons):
            say(f"note: {note}")
    table("predicted cost", ("width kept in every group", "parameters", "MACs"), _costs(traced))


def _costs(traced: Traced) -> list[tuple[str, str, str]]:
    """Return share, parameters and MACs of the network with this share of every group kept."""
    graph, cost = traced.graph, traced.cost()
    scores: Scores = {g.name: torch.arange(1.0, len(g.units) + 1) for g in graph.groups}
    lines = []
    for share in _SHARES:
        removed = PerLayer(share).select(Scored(scores, graph, cost)).keep.removed
        lines.append((f"{share:.0%}", f"{cost.params(removed):,}", f"{cost.macs(removed):,}"))
    return lines
