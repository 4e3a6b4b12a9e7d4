"""Score the units, drop the lowest, write the narrow model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunekit.build import build
from prunekit.console import track
from prunekit.criteria import Criterion, Stored
from prunekit.data import Data
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph
from prunekit.runs.files import write_json
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.selection import Aim, Selection, Sensitivity
from prunekit.stages.aftermath import compared, figures, told, variants, written
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.network import notes_on, start, weights_of
from prunekit.stages.parts import (
    counts,
    history_writer,
    load_data,
)
from prunekit.stages.rounds import CHECKED, Rounds
from prunekit.surgery import attached, fold, save_model
from prunekit.surgery.cut import Cut
from prunekit.training import Schedule, fit


def prune(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Select units, remove them, and check that removing equals silencing."""
    criterion = criterion_of(settings, stage)
    selection = selection_of(settings, stage)
    data = load_data(settings, runtime)
    saved = start(settings, stage, data, runtime)
    _check_rounds(selection, criterion, data)
    example = data.example.to(runtime.device)
    graph = ChannelGraph.trace(saved.model, example, over_norms=settings["over_norms"])
    cost = selection.costs(saved.model, graph, example, runtime.device, track)
    way = Rounds(
        model=saved.model,
        graph=graph,
        selection=selection,
        criterion=criterion,
        cost=cost,
        data=data,
        device=runtime.device,
        absorb=settings["absorb"],
        over_norms=settings["over_norms"],
    )
    keep = way.run(_training(settings, stage, data, runtime))
    aims = selection.aims(keep, way.scores, graph, cost)
    chosen = written(way, settings["statistics"])
    names = compared(way.model, data) if settings["diagnose"] else ()
    found = variants(way, dict.fromkeys((*names, chosen)), data, runtime)
    model, after = found[chosen].model, figures(found, names)
    edits = [edit for made in way.cuts for edit in made.edits]
    folded = fold(model, data.inputs(CHECKED).to(runtime.device)) if attached(model) else None
    if folded:
        model, edits = folded.model, [*edits, folded.edit]
    write_json(stage.path / "plan.json", plan(graph, keep))
    save_model(stage.path / "model.pt", model, saved.arch, [*saved.edits, *edits])
    return Outcome(
        {
            **found[chosen].quality,
            **counts(model, data),
            **_facts(way.cuts),
            **({"fold_error": folded.gap.relative} if folded else {}),
            **_asked(aims),
            **after,
            "collapsed_layers": ", ".join(selection.collapsed(keep, way.scores, graph)) or None,
            **{f"kept/{name}": int(mask.sum()) for name, mask in keep.items()},
        },
        (
            *_on_start(settings, stage),
            *data.notes,
            *_told(way.cuts),
            *([str(folded)] if folded else []),
            *told(after),
            *_scaled(criterion, selection),
            *selection.notes(keep, way.scores, graph, cost),
            *graph.notes,
            *_rescued(way.scores, keep),
        ),
    )


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


def selection_of(settings: Settings, stage: StageDir) -> Selection:
    """The selection; sensitivity curves are those of the same run where no others are named."""
    selection: Selection = build(settings["selection"], "selection")
    if not isinstance(selection, Sensitivity) or selection.path is not None:
        return selection
    return replace(selection, path=stage.run.stage("sensitivity").path)


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
            checkpoint=stage.checkpoint.phase(f"round{number}"),
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


def _facts(cuts: list[Cut]) -> Metrics:
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


def _told(cuts: list[Cut]) -> list[str]:
    """The check and the absorption in words, round by round."""
    found = []
    for number, made in enumerate(cuts, start=1):
        where = f"round {number}: " if len(cuts) > 1 else ""
        found += [f"{where}{note}" for note in made.notes]
        found += [f"{where}{made.agreement}"] if made.agreement else []
        if made.absorbed:
            found += [f"{where}{note}" for note in (made.absorbed, *made.absorbed.notes)]
    return found


def _scaled(criterion: Criterion, selection: Selection) -> list[str]:
    """Where a selection scales scores that compare between groups as they are."""
    if getattr(selection, "normalise", None) is None or not criterion.comparable:
        return []
    if getattr(selection, "scope", "global") == "local":
        return []
    return [
        f"{type(criterion).__name__} compares between layers as it is, and selection.normalise "
        "scaled it by layer; selection.normalise=null leaves it as it is"
    ]


def _rescued(scores: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> list[str]:
    return [
        f"every unit of {name} scored zero; {int(keep[name].sum())} kept so that the layer lives"
        for name, score in scores.items()
        if not score.any() and keep[name].any()
    ]
