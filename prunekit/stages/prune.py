"""Score the units, drop the lowest, write the narrow model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.build import build
from prunekit.criteria import Criterion, Stored
from prunekit.data import Data
from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.modes import evaluating
from prunekit.runs.files import write_json
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.parts import counts, load_data, load_source, quality
from prunekit.surgery import Narrow, save_model

TOLERANCE = 1e-4  # largest logit difference, relative to the largest logit, that surgery may make


def prune(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Select units, remove them, and check that removing equals silencing."""
    criterion = criterion_of(settings, stage.source)
    selection = build(settings["selection"], "selection")
    saved = load_source(stage.source, runtime)
    model = saved.model
    data = load_data(settings, runtime)
    graph = ChannelGraph.trace(model, data.example.to(runtime.device))
    scores = criterion.scores(model, graph, data, runtime.device)
    keep = selection.choose(scores, graph, CostModel(model, graph))
    drop = graph.drop({name: ~mask for name, mask in keep.items()})
    edit = Narrow.of(graph, drop)
    narrow = copy.deepcopy(model)
    edit.apply(narrow)
    difference = surgery_error(model, narrow, graph, drop, data)
    write_json(stage.path / "plan.json", plan(graph, keep))
    save_model(stage.path / "model.pt", narrow, saved.arch, [*saved.edits, edit])
    metrics = {**quality(narrow, data, runtime), **counts(narrow, data)}
    widths = {f"kept/{name}": int(mask.sum()) for name, mask in keep.items()}
    return Outcome(
        {**metrics, "surgery_error": difference, **widths},
        (*data.notes, *graph.notes, *_rescued(scores, keep)),
    )


def criterion_of(settings: Settings, source: Path) -> Criterion:
    """The criterion; stored scores lie beside the model they belong to."""
    criterion = build(settings["criterion"], "criterion")
    if isinstance(criterion, Stored) and criterion.path is None:
        return replace(criterion, path=source.parent / "scores.pt")
    return criterion


@torch.inference_mode()
def surgery_error(
    model: nn.Module, narrow: nn.Module, graph: ChannelGraph, drop: Tensor, data: Data
) -> float:
    """The largest logit difference between the narrow network and the silenced one.

    Relative to the largest logit; raises SurgeryError above the tolerance.
    """
    batch, _ = next(iter(data.test.epoch(64, None)))
    with evaluating(model, narrow):
        found = narrow(batch)
        with graph.silencer(model, drop):
            expected = model(batch)
    error = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= TOLERANCE:
        raise SurgeryError(
            f"the narrow network differs from the silenced one by {error:.2e} (at most "
            f"{TOLERANCE:g}); please report the network, nothing was written"
        )
    return error


def plan(graph: ChannelGraph, keep: Mapping[str, Tensor]) -> dict[str, Any]:
    """Which units of every group stay, for people and for `selection=like_run`."""
    groups = {
        group.name: {
            "kept": int(keep[group.name].sum()),
            "of": len(group.units),
            "indices": keep[group.name].nonzero().flatten().tolist(),
            "producers": list(group.producers),
        }
        for group in graph.groups
    }
    return {"groups": groups, "notes": list(graph.notes)}


def _rescued(scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> list[str]:
    return [
        f"every unit of {name} scored zero; {int(keep[name].sum())} kept so that the layer lives"
        for name, score in scores.items()
        if not score.any() and keep[name].any()
    ]
