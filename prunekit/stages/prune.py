"""Score the units, drop the lowest, write the narrow model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from prunekit import engine
from prunekit.build import build
from prunekit.console import track
from prunekit.criteria import Criterion, Stored
from prunekit.data import Data
from prunekit.engine import CHECKED, CutOptions, Pruning, Traced
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.runs.files import write_json
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.selection import Aim, Selection
from prunekit.stages.aftermath import accuracy_note, compared, figures, variants, written
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.network import notes_on, start, weights_of
from prunekit.stages.parts import (
    counts,
    history_writer,
    load_data,
)
from prunekit.surgery import attached, fold, save_model
from prunekit.surgery.cut import Cut
from prunekit.training import Schedule, fit


def prune(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Select units, remove them, and check that removing equals silencing."""
    criterion = criterion_of(settings, stage)
    selection = build(settings["selection"], "selection").within(stage.run.path)
    data = load_data(settings, runtime)
    saved = start(settings, stage, data, runtime)
    _check_rounds(selection, criterion, data)
    dense = Traced.of(saved.model, data.example, data.inputs(CHECKED), settings["over_norms"])
    tune = _training(settings, stage, data, runtime)
    options = CutOptions(settings["absorb"])
    pruning = engine.prune(dense, criterion, selection, options, data, tune, track)
    chosen = written(pruning, settings["statistics"])
    names = compared(pruning.model, data) if settings["diagnose"] else ()
    found = variants(pruning, dict.fromkeys((*names, chosen)), data, runtime)
    model, after = found[chosen].model, figures(found, names)
    folded = fold(model, dense.batch) if attached(model) else None
    edits = [*pruning.edits, *([folded.edit] if folded else [])]
    model = folded.model if folded else model
    write_json(stage.path / "plan.json", plan(dense.graph, pruning.keep))
    save_model(stage.path / "model.pt", model, saved.arch, [*saved.edits, *edits])
    metrics = {
        **found[chosen].quality,
        **counts(model, data),
        **_facts(pruning.cuts),
        **({"fold_error": folded.gap.relative} if folded else {}),
        **_asked(pruning.selected.aims),
        **after,
        "collapsed_layers": ", ".join(pruning.selected.emptied) or None,
        **{f"kept/{name}": count for name, count in pruning.keep.counts.items()},
    }
    notes = (
        *_on_start(settings, stage),
        *data.notes,
        *_cut_notes(pruning.cuts),
        *([str(folded)] if folded else []),
        *accuracy_note(after),
        *pruning.selected.notes,
        *dense.graph.notes,
        *_rescued(pruning),
    )
    return Outcome(metrics, notes)


def criterion_of(settings: Settings, stage: StageDir) -> Criterion:
    """The criterion; stored scores lie beside the model they belong to."""
    criterion = build(settings["criterion"], "criterion")
    if not isinstance(criterion, Stored) or criterion.path is not None:
        return criterion
    if not stage.sourced:
        raise ArtifactError(
            f"prune with criterion=stored starts from a model and its scores, and {stage.run.path} "
            "holds none; run prunekit pretrain or sparsify first, give source=path/to/model.pt, or "
            "choose another criterion (l1_norm needs weights only)"
        )
    return replace(criterion, path=stage.source.parent / "scores.pt")


def plan(graph: ChannelGraph, keep: ChannelMask) -> dict[str, Any]:
    """Which units of every group stay, for people and for `selection=like_run`."""
    indices = {name: found.tolist() for name, found in keep.indices.items()}
    groups = {
        group.name: {
            "kept": len(indices[group.name]),
            "of": len(group.units),
            "indices": indices[group.name],
            "producers": list(group.producers),
        }
        for group in graph.groups
    }
    return {"groups": groups, "notes": list(graph.notes)}


def _check_rounds(selection: Selection, criterion: Criterion, data: Data) -> None:
    """Between rounds there is training, and the narrower network is scored anew."""
    if selection.rounds == 1:
        return
    if not data.train.size:
        raise ConfigError(
            f"selection.rounds={selection.rounds} trains between the rounds, and dataset=none has "
            "no images; choose a data set, or selection.rounds=1"
        )
    if isinstance(criterion, Stored):
        raise ConfigError(
            f"selection.rounds={selection.rounds} scores the network anew in every round, which "
            "criterion=stored cannot; choose another criterion, or selection.rounds=1"
        )


def _training(settings: Settings, stage: StageDir, data: Data, runtime: Runtime) -> Any:
    """Brief training after a round, with a checkpoint of its own: a finished one only loads."""
    schedule: Schedule = build(settings["schedule"]["between"], "schedule.between")
    write, past = history_writer(stage), []

    def train(model: nn.Module, number: int) -> None:
        def on_epoch(rows: list[dict[str, float]]) -> None:
            write([*past, *({"round": number, **row} for row in rows)])

        history = fit(
            model,
            data,
            schedule,
            seed=settings["seed"] + number,
            device=runtime.device,
            checkpoint=stage.checkpoint.with_name(f"last-round{number}.pt"),
            label=f"round {number}",
            on_epoch=on_epoch,
        )
        past.extend({"round": number, **row} for row in history)

    return train


def _on_start(settings: Settings, stage: StageDir) -> list[str]:
    """What must be said of a network that was built here."""
    if stage.sourced:
        return []
    untrained = "the network was randomly initialised: no earlier stage, and model.weights is null"
    return notes_on(weights_of(settings)) or [untrained]


def _facts(cuts: Sequence[Cut]) -> Metrics:
    """How far the cuts are from silencing, the worst of the rounds, and what was absorbed."""
    agreed = [made.agreement for made in cuts if made.agreement is not None]
    trained = [found.train.relative for found in agreed if found.train is not None]
    absorbed = [made.absorbed for made in cuts if made.absorbed is not None]
    found: Metrics = {
        "surgery_error": max(agreement.worst for agreement in agreed),
        "agreement_eval": max(agreement.eval.relative for agreement in agreed),
        "agreement_train": max(trained) if trained else None,
        "absorbed": sum(len(one.rows) for one in absorbed) if absorbed else None,
    }
    if absorbed:
        found["absorbed_change"] = max(one.change.moved for one in absorbed)
    return found


def _asked(aims: tuple[Aim, ...]) -> Metrics:
    """What was asked to be kept of every budget, what the network has, and what was predicted."""
    found: Metrics = {}
    for aim in aims:
        found |= {f"asked/{aim.name}": aim.asked, f"reached/{aim.name}": aim.reached}
        if aim.predicted is not None:
            found[f"predicted/{aim.name}"] = aim.predicted
    return found


def _cut_notes(cuts: Sequence[Cut]) -> list[str]:
    """The check and the absorption in words, round by round."""
    found = []
    for number, made in enumerate(cuts, start=1):
        where = f"round {number}: " if len(cuts) > 1 else ""
        found += [f"{where}{note}" for note in made.notes]
        found += [f"{where}{made.agreement}"] if made.agreement else []
        if made.absorbed:
            found += [f"{where}{note}" for note in (made.absorbed, *made.absorbed.notes)]
    return found


def _rescued(pruning: Pruning) -> list[str]:
    """The groups all of whose units score zero, and that keep some all the same."""
    return [
        f"every unit of {name} scored zero; {count} kept so that the layer lives"
        for name, count in pruning.keep.counts.items()
        if count and name in pruning.scores and not pruning.scores[name].any()
    ]
