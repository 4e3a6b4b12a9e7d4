"""Show the channels of a network; nothing is trained and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunekit.build import build
from prunekit.console import say, table
from prunekit.engine import Traced
from prunekit.methods.hinge import Hinged
from prunekit.runs.rundir import model_file
from prunekit.selection import PerLayer, Scored
from prunekit.stages.base import Request
from prunekit.stages.common import load_source
from prunekit.stages.network import FromNetwork, with_matrices, with_selections
from prunekit.stages.root import OverNorms
from prunekit.stages.spec import Settings


@dataclass(frozen=True)
class Inspect(FromNetwork):
    """What `prunekit inspect` is asked for."""

    over_norms: OverNorms


def inspect(settings: Settings, directory: str) -> None:
    """Print channel groups, what is frozen and why, and the cost at several widths."""
    asked, request = Inspect.of(settings), Request.of(settings)
    request.runtime.apply(asked.seed)
    if request.root.source is not None:
        model = load_source(model_file(request.root.source), request.runtime).model
    else:
        model = build(asked.dense.arch, "model")
    example = torch.zeros(1, *asked.dataset.shape)
    if asked.channel_selection:
        with_selections(model, example)
    if with_matrices(model, example, asked.placement):
        hinged = [(n, m.site) for n, m in model.named_modules() if isinstance(m, Hinged)]
        rows = [(n, s.block, " and ".join(s.sides), s.start or "is the matrix") for n, s in hinged]
        table("matrices", ("layer", "block", "what may vanish", "start"), rows)
    traced = Traced.of(model, example, over_norms=asked.over_norms)
    graph, cost = traced.graph, traced.cost()
    table("channel groups", ("group", "units", "made by", "read by"), graph.rows())
    for line in graph.stays():
        say(f"stays: {line}")
    told = {why for reasons in graph.frozen.values() for why in reasons.split("; ")}
    for note in graph.notes:
        if not any(why in note for why in told):
            say(f"note: {note}")
    scores: dict[str, Any] = {g.name: torch.arange(1.0, len(g.units) + 1) for g in graph.groups}
    predicted = []
    for share in (1.0, 0.75, 0.5, 0.25, 0.1):
        removed = PerLayer(share).select(Scored(scores, graph, cost)).keep.removed
        predicted.append((f"{share:.0%}", f"{cost.params(removed):,}", f"{cost.macs(removed):,}"))
    table("predicted cost", ("width kept in every group", "parameters", "MACs"), predicted)
