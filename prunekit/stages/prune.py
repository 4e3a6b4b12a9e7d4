"""Score the units, drop the lowest, write the narrow model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from prunekit import engine
from prunekit.console import track
from prunekit.criteria import Criterion
from prunekit.data import Data
from prunekit.engine import CHECKED, CutOptions, Pruning, Traced, Tune
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.methods.hinge import fold, layers_with_matrix
from prunekit.runs.files import write_json
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.selection import Aim, Selection
from prunekit.stages.common import counts, history_writer
from prunekit.stages.network import FromNetwork, notes_on
from prunekit.stages.pruned_variants import accuracy_note, compared, figures, variants, written
from prunekit.stages.root import Absorb, Diagnose, NormStatistics, OverNorms
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Read, Stage
from prunekit.stages.weights import Dense
from prunekit.surgery import save_model
from prunekit.surgery.cut import Cut
from prunekit.training import Schedule, fit


@dataclass(frozen=True)
class Prune(FromNetwork, Stage):
    """Select units, remove them, and check that removing equals silencing."""

    name = "prune"
    criterion: Annotated[Criterion, "what a channel is worth"]
    selection: Annotated[Selection, "which channels are kept"]
    absorb: Absorb
    over_norms: OverNorms
    between: Annotated[Schedule, Read("schedule.between")]
    diagnose: Diagnose
    statistics: NormStatistics

    def within(self, run: Path, source: Path | None) -> Prune:
        """With stored scores beside the source, and curves of the run's own."""
        criterion, selection = self.criterion.beside(source), self.selection.within(run)
        return replace(self, criterion=criterion, selection=selection)

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Prune, in rounds where the selection wants them."""
        self._check_scores(place)
        data = self.data(runtime)
        saved = self.start(place, data, runtime)
        self._check_rounds(data)
        dense = Traced.of(saved.model, data.example, data.inputs(CHECKED), self.over_norms)
        pruning = engine.prune(
            dense,
            self.criterion,
            self.selection,
            CutOptions(self.absorb),
            data,
            self._tuning(place, data, runtime),
            track,
        )
        chosen = written(pruning, self.statistics)
        names = compared(pruning.model, data) if self.diagnose else ()
        found = variants(pruning, dict.fromkeys((*names, chosen)), data, runtime)
        model, after = found[chosen].model, figures(found, names)
        folded = fold(model, dense.batch) if layers_with_matrix(model) else None
        edits = [*pruning.edits, *([folded.edit] if folded else [])]
        model = folded.model if folded else model
        write_json(place.path / "plan.json", plan(dense.graph, pruning.keep))
        save_model(place.path / "model.pt", model, saved.arch, [*saved.edits, *edits])
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
            *(() if place.sourced else _on_start(self.dense)),
            *data.notes,
            *_cut_notes(pruning.cuts),
            *([str(folded)] if folded else []),
            *accuracy_note(after),
            *pruning.selected.notes,
            *dense.graph.notes,
            *_rescued(pruning),
        )
        return Outcome(metrics, notes)

    def _check_scores(self, place: StageDir) -> None:
        if not self.criterion.complete:
            raise ArtifactError(
                f"prune with criterion=stored starts from a model and its scores, and "
                f"{place.run.path} holds none; run prunekit pretrain or sparsify first, give "
                "source=path/to/model.pt, or choose another criterion (l1_norm needs weights only)"
            )

    def _check_rounds(self, data: Data) -> None:
        """Between rounds there is training, and the narrower network is scored anew."""
        rounds = self.selection.rounds
        if rounds > 1 and not data.train.size:
            raise ConfigError(
                f"selection.rounds={rounds} trains between the rounds, and dataset=none has no "
                "images; choose a data set, or selection.rounds=1"
            )
        if rounds > 1 and not self.criterion.again:
            raise ConfigError(
                f"selection.rounds={rounds} scores the network anew in every round, which "
                "criterion=stored cannot; choose another criterion, or selection.rounds=1"
            )

    def _tuning(self, place: StageDir, data: Data, runtime: Runtime) -> Tune:
        """Brief training after a round, with a checkpoint of its own: a finished one only loads."""
        write, past = history_writer(place), []

        def tune(model: nn.Module, number: int) -> None:
            def on_epoch(rows: list[dict[str, float]]) -> None:
                write([*past, *({"round": number, **row} for row in rows)])

            history = fit(
                model,
                data,
                self.between,
                seed=self.seed + number,
                device=runtime.device,
                checkpoint=place.checkpoint.phase(f"round{number}"),
                label=f"round {number}",
                on_epoch=on_epoch,
            )
            past.extend({"round": number, **row} for row in history)

        return tune


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


def _on_start(dense: Dense) -> list[str]:
    """What must be said of a network that was built here."""
    untrained = "the network was randomly initialised: no earlier stage, and model.weights is null"
    return notes_on(dense.weights) or [untrained]


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
