"""The stage that removes channels: scores them, cuts the lowest, and writes the narrow network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from prunekit.modes import duplicate
from prunekit.reporting.refitting import draw
from prunekit.runs.files import write_csv, write_json
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.selection import BudgetResult, Selection
from prunekit.stages.network import (
    Dense,
    FromNetwork,
    measure_accuracy,
    measure_size,
    weights_notes,
)
from prunekit.stages.settings import Absorb, Diagnose, NormStatistics, OverNorms, Runtime
from prunekit.stages.stage import FromSettings, Stage, history_writer
from prunekit.surgery import save_model
from prunekit.surgery.cut import Cut
from prunekit.surgery.reconstruction import Reconstruction
from prunekit.training import Schedule, fit, has_running_statistics, recompute_statistics

STATISTICS_IMAGES = 2048  # training images that batch-norm statistics are recomputed on


@dataclass(frozen=True)
class Prune(FromNetwork, Stage):
    """Selects units, removes them, and checks that the cut equals silencing them."""

    name = "prune"
    criterion: Annotated[Criterion, "how units are scored"]
    selection: Annotated[Selection, "which units are kept"]
    absorb: Absorb
    reconstruct: Annotated[Reconstruction | None, "how layers behind a cut are refitted"]
    over_norms: OverNorms
    between: Annotated[Schedule, FromSettings("schedule.between")]
    diagnose: Diagnose
    statistics: NormStatistics

    def with_files(self, run: Path, source: Path | None) -> Prune:
        """Return the stage with the scores beside the source, and the curves of the run."""
        criterion, selection = self.criterion.resolve_beside(source), self.selection.resolve_in(run)
        return replace(self, criterion=criterion, selection=selection)

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Prune the network, in several rounds where the selection has them."""
        self._check_scores(stage_dir)
        data = self.data(runtime)
        saved = self.start(stage_dir, data, runtime)
        self._check_rounds(data)
        dense = Traced.of(saved.model, data.example, data.inputs(CHECKED), self.over_norms)
        pruning = engine.prune(
            dense,
            self.criterion,
            self.selection,
            CutOptions(self.absorb, reconstruct=self.reconstruct, seed=self.seed),
            data,
            self._tuning(stage_dir, data, runtime),
            track,
        )
        chosen = _chosen_variant(pruning, self.statistics)
        names = _compared_variants(pruning, data) if self.diagnose else ()
        wanted = dict.fromkeys((*names, chosen))
        variants = _measure_variants(pruning, wanted, data, runtime, self.seed)
        model, after = variants[chosen].model, _variant_metrics(variants, names)
        folded = fold(model, dense.batch) if layers_with_matrix(model) else None
        edits = [*pruning.edits, *([folded.edit] if folded else [])]
        model = folded.model if folded else model
        write_json(stage_dir.path / "plan.json", _plan(dense.graph, pruning.keep))
        _write_refit(pruning.cuts, stage_dir.path)
        save_model(stage_dir.path / "model.pt", model, saved.arch, [*saved.edits, *edits])
        metrics = {
            **variants[chosen].accuracy,
            **measure_size(model, data),
            **_cut_metrics(pruning.cuts),
            **_refit_metrics(pruning.cuts),
            **({"fold_error": folded.gap.relative} if folded else {}),
            **_budget_metrics(pruning.selected.budgets),
            **after,
            "collapsed_layers": ", ".join(pruning.selected.emptied) or None,
            **{f"kept/{name}": count for name, count in pruning.keep.counts.items()},
        }
        notes = (
            *(() if stage_dir.has_source else _start_notes(self.dense)),
            *data.notes,
            *_cut_notes(pruning.cuts),
            *([str(folded)] if folded else []),
            *_accuracy_note(after),
            *pruning.selected.notes,
            *dense.graph.notes,
            *_zero_score_notes(pruning),
        )
        return Outcome(metrics, notes)

    def _check_scores(self, stage_dir: StageDir) -> None:
        if not self.criterion.resolved:
            raise ArtifactError(
                f"prune with criterion=stored starts from a model and its scores, and "
                f"{stage_dir.run.path} holds none; run prunekit pretrain or sparsify first, give "
                "source=path/to/model.pt, or choose another criterion (l1_norm needs weights only)"
            )

    def _check_rounds(self, data: Data) -> None:
        """Raise ConfigError where rounds cannot train, or cannot score the narrower network."""
        rounds = self.selection.rounds
        if rounds > 1 and not data.train.size:
            raise ConfigError(
                f"selection.rounds={rounds} trains between the rounds, and dataset=none has no "
                "images; choose a data set, or selection.rounds=1"
            )
        if rounds > 1 and not self.criterion.rescorable:
            raise ConfigError(
                f"selection.rounds={rounds} scores the network anew in every round, which "
                "criterion=stored cannot; choose another criterion, or selection.rounds=1"
            )

    def _tuning(self, stage_dir: StageDir, data: Data, runtime: Runtime) -> Tune:
        """Return the training after each round; every round has a checkpoint of its own."""
        write = history_writer(stage_dir)
        earlier: list[dict[str, Any]] = []

        def tune(model: nn.Module, number: int) -> None:
            def on_epoch(epochs: list[dict[str, Any]]) -> None:
                write([*earlier, *({"round": number, **epoch} for epoch in epochs)])

            history = fit(
                model,
                data,
                self.between,
                seed=self.seed + number,
                device=runtime.device,
                checkpoint=stage_dir.checkpoint.phase(f"round{number}"),
                label=f"round {number}",
                on_epoch=on_epoch,
            )
            earlier.extend({"round": number, **epoch} for epoch in history)

        return tune


@dataclass(frozen=True, eq=False)
class _Variant:
    """A pruned network, and its test and validation accuracy before fine-tuning.

    The name of a variant says whether constants were dropped or absorbed or layers were refitted,
    and whether batch-norm statistics were recomputed: a collapse after pruning is often one of the
    statistics only.
    """

    model: nn.Module
    accuracy: Metrics


def _chosen_variant(pruning: Pruning, statistics: str) -> str:
    """Return the name of the variant that is saved, from the last cut and `statistics`."""
    ending = "_recomputed" if statistics == "recomputed" else ""
    return _treatment(pruning) + ending


def _treatment(pruning: Pruning) -> str:
    """Return what became of the layers that lost inputs in the last cut."""
    if pruning.cuts[-1].refitted is not None:
        return "refitted"
    return "absorbed" if pruning.absorbed else "dropped"


def _compared_variants(pruning: Pruning, data: Data) -> tuple[str, ...]:
    """Return the names of the variants to compare: none without images, half without batch norm."""
    if not (data.test.size and data.train.size):
        return ()
    model = pruning.model
    names = tuple(dict.fromkeys(("dropped", "absorbed", _treatment(pruning))))
    recomputed = tuple(f"{name}_recomputed" for name in names)
    return (*names, *recomputed) if has_running_statistics(model) else names


def _measure_variants(
    pruning: Pruning, names: Collection[str], data: Data, runtime: Runtime, seed: int
) -> dict[str, _Variant]:
    """Return the variants of these names with their accuracy; the seed chooses images."""
    cut: dict[str, nn.Module] = {}
    variants = {}
    for name in names:
        constants, _, recomputed = name.partition("_")
        if constants not in cut:
            is_last = constants == "refitted"
            cut[constants] = (
                pruning.model if is_last else pruning.with_constants(constants == "absorbed")
            )
        model = (
            _with_new_statistics(cut[constants], data, runtime, seed)
            if recomputed
            else cut[constants]
        )
        variants[name] = _Variant(model, measure_accuracy(model, data, runtime))
    return variants


def _with_new_statistics(model: nn.Module, data: Data, runtime: Runtime, seed: int) -> nn.Module:
    """Return a copy whose batch-norm statistics are those of training images."""
    copy = duplicate(model)
    recompute_statistics(copy, data.train, STATISTICS_IMAGES, runtime.device, seed)
    return copy


def _variant_metrics(variants: Mapping[str, _Variant], names: Collection[str]) -> Metrics:
    """Return test and validation accuracy of the compared variants, in percent."""
    return {
        f"{prefix}/{name}": variants[name].accuracy[key]
        for prefix, key in (("after", "top1"), ("val_after", "val_top1"))
        for name in names
        if key in variants[name].accuracy
    }


def _accuracy_note(metrics: Metrics) -> list[str]:
    """Return the test accuracy of the compared variants as a sentence."""
    if not metrics:
        return []

    def values(end: str) -> str:
        dropped, absorbed = (metrics[f"after/{name}{end}"] for name in ("dropped", "absorbed"))
        line = f"{dropped:.2f} % with constants dropped, {absorbed:.2f} % absorbed"
        refitted = metrics.get(f"after/refitted{end}")
        return line if refitted is None else f"{line}, {refitted:.2f} % with layers refitted"

    recomputed = ""
    if "after/dropped_recomputed" in metrics:
        recomputed = f"; with batch-norm statistics recomputed {values('_recomputed')}"
    return [f"top-1 before fine-tuning: {values('')}{recomputed}"]


def _plan(graph: ChannelGraph, keep: ChannelMask) -> dict[str, Any]:
    """Return the kept units of every group, which `selection=like_run` reads from plan.json."""
    indices = {name: kept.tolist() for name, kept in keep.indices.items()}
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


def _start_notes(dense: Dense) -> list[str]:
    """Return what the report must say about a network that was built in this stage."""
    untrained = "the network was randomly initialised: no earlier stage, and model.weights is null"
    return weights_notes(dense.weights) or [untrained]


def _cut_metrics(cuts: Sequence[Cut]) -> Metrics:
    """Return the largest differences from the silenced and the dense network over all rounds."""
    agreements = [cut.agreement for cut in cuts if cut.agreement is not None]
    trained = [agreement.train.relative for agreement in agreements if agreement.train is not None]
    absorbed = [cut.absorbed for cut in cuts if cut.absorbed is not None]
    metrics: Metrics = {
        "surgery_error": max(agreement.worst for agreement in agreements),
        "agreement_eval": max(agreement.eval.relative for agreement in agreements),
        "agreement_train": max(trained) if trained else None,
        "absorbed": sum(len(each.layers) for each in absorbed) if absorbed else None,
    }
    distances = [cut.distance.gap for cut in cuts if cut.distance is not None]
    gaps = [gap.relative for gap in distances if gap is not None]
    metrics["dense_distance"] = max(gaps) if gaps else None
    if absorbed:
        metrics["absorbed_change"] = max(each.change.moved for each in absorbed)
    return metrics


def _refit_metrics(cuts: Sequence[Cut]) -> Metrics:
    """Return what refitting did: errors of layers in the last round, otherwise of all rounds.

    `refit_change` is by how much it moved the outputs, relative to the largest one.
    """
    found = [cut.refitted for cut in cuts if cut.refitted is not None]
    if not found:
        return {}
    gaps = [refitted.moved.relative for refitted in found if refitted.moved is not None]
    return {
        "refit_layers": len(found[-1].layers),
        "refit_images": found[-1].examples,
        "refit_before": found[-1].error_before,
        "refit_after": found[-1].error_after,
        "refit_change": max(gaps) if gaps else None,
        "refit_seconds": sum(refitted.seconds for refitted in found),
    }


def _write_refit(cuts: Sequence[Cut], folder: Path) -> None:
    """Write refit.csv, a line for every refitted layer of every round, and refit.png from it."""
    records = [
        {**({"round": number} if len(cuts) > 1 else {}), **asdict(layer)}
        for number, cut in enumerate(cuts, start=1)
        if cut.refitted is not None
        for layer in cut.refitted.layers
    ]
    if records:
        write_csv(folder / "refit.csv", records)
        draw(records, folder / "refit.png")


def _budget_metrics(budgets: tuple[BudgetResult, ...]) -> Metrics:
    """Return for every budget the requested, the reached and the predicted amount."""
    metrics: Metrics = {}
    for budget in budgets:
        metrics[f"asked/{budget.name}"] = budget.requested
        metrics[f"reached/{budget.name}"] = budget.achieved
        if budget.predicted is not None:
            metrics[f"predicted/{budget.name}"] = budget.predicted
    return metrics


def _cut_notes(cuts: Sequence[Cut]) -> list[str]:
    """Return the check and the absorption of every round in words."""
    notes = []
    for number, cut in enumerate(cuts, start=1):
        lines = [
            *cut.notes,
            *([str(cut.agreement)] if cut.agreement else []),
            *((str(cut.absorbed), *cut.absorbed.notes) if cut.absorbed else ()),
            *((str(cut.refitted), *cut.refitted.notes) if cut.refitted else ()),
            *([str(cut.distance)] if cut.distance else []),
        ]
        prefix = f"round {number}: " if len(cuts) > 1 else ""
        notes += [f"{prefix}{line}" for line in lines]
    return notes


def _zero_score_notes(pruning: Pruning) -> list[str]:
    """Return a note for every group that keeps units although all of them score zero."""
    return [
        f"every unit of {name} scored zero; {count} kept so that the layer lives"
        for name, count in pruning.keep.counts.items()
        if count and name in pruning.scores and not pruning.scores[name].any()
    ]
