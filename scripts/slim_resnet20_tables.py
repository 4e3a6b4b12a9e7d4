"""What the ResNet-20 comparison found: strengths, accuracies, verdicts, and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from measured import Row, metrics, publish, refuse_empty, spread, verdict, write_markdown
from slim_resnet20 import NONE, TABLE, Extent, chosen, named, strong, trial

from prunekit.reporting.collect import collect
from prunekit.reporting.tables import summary
from prunekit.reporting.tradeoff import accuracy_against_size

SMALL = ("below/1e-02", "below/1e-03", "below/1e-04")
AFTER = {  # metric of the prune stage -> column
    "after/dropped": "pruned %",
    "after/absorbed": "absorbed %",
    "after/dropped_recomputed": "recomputed %",
    "after/absorbed_recomputed": "absorbed, recomputed %",
}
CHOICE = (
    "One seed, on the network trained here. The strength with the best validation accuracy after "
    "tuning is taken; test accuracies stand beside it, and had no part in it."
)
FOUND = (
    "From the published weights, at the chosen strengths, then at the strongest (first seed); test "
    "accuracy, mean and standard deviation over seeds. `pruned` drops what removed channels emit, "
    "as published; `absorbed` keeps it as biases; `recomputed` has batch-norm statistics of "
    "training images."
)
VERDICTS = "Error differences, paired over seeds and test images; undecided where 0 is inside."


def write_tables(root: Path, out: Path, extent: Extent) -> None:
    """Three tables as csv, on the screen and in one markdown file; and the figure."""
    best, most = chosen(extent, root), max(extent.strengths)
    found = [
        _judged(root, method, best.get(method), [named(method, seed) for seed in extent.seeds])
        for method in (NONE, *extent.penalties)
    ]
    refuse_empty(found)
    found += [_judged(root, m, most, [strong(extent, root, m)]) for m in extent.penalties]
    parts = [
        publish(out, f"{TABLE}_choice", "strengths", _choices(root, extent), CHOICE),
        publish(out, TABLE, "ResNet-20 at half of the MACs", found, FOUND),
        publish(out, f"{TABLE}_verdicts", "verdicts", _verdicts(root, extent), VERDICTS),
    ]
    write_markdown(out / f"{TABLE}.md", *parts)
    runs = summary(collect([root / TABLE]))
    runs = runs[runs["run"].str.startswith(("seed", "strong"))]
    accuracy_against_size(runs, out / f"{TABLE}.png")


def _choices(root: Path, extent: Extent) -> list[Row]:
    best = chosen(extent, root)
    return [
        _choice(root, extent, method, lam, best.get(method) == lam)
        for method in extent.penalties
        for lam in extent.strengths
    ]


def _choice(root: Path, extent: Extent, method: str, lam: float, taken: bool) -> Row:
    name = trial(extent, method, lam).name
    stages = {stage: metrics(root, name, stage) for stage in ("sparsify", "prune", "finetune")}
    row: Row = {"penalty": method, "lam": lam, "chosen": "yes" if taken else ""}
    for stage, word in (("sparsify", "sparse"), ("prune", "pruned"), ("finetune", "tuned")):
        for key, title in (("val_top1", "val"), ("top1", "test")):
            done = stages[stage]
            row[f"{word}, {title} %"] = spread([done[key]] if done else [])
    pruned, sparse = stages["prune"], stages["sparsify"]
    row["parameters"] = pruned["params"] if pruned else "not run"
    return row | {key: spread([sparse[key]] if sparse else [], "{:.3f}") for key in SMALL}


def _judged(root: Path, method: str, lam: float | None, runs: Sequence[str]) -> Row:
    """One row of measured figures over the runs that have finished."""
    done = [run for run in runs if metrics(root, run, "measure")]

    def over(stage: str, key: str, form: str = "{:.2f}") -> str:
        values = [metrics(root, run, stage).get(key) for run in done]
        return spread([value for value in values if value is not None], form)

    return {
        "penalty": method,
        "lam": "-" if lam is None else lam,
        "seeds": len(done),
        "sparse %": over("sparsify", "top1"),
        **{title: over("prune", key) for key, title in AFTER.items()},
        "tuned %": over("finetune", "top1"),
        "parameters": over("prune", "params", "{:,.0f}"),
        "MACs": over("prune", "macs", "{:,.0f}"),
        "CPU speed-up": over("measure", "speedup"),
        **{key: over("sparsify", key, "{:.3f}") for key in SMALL},
    }


def _verdicts(root: Path, extent: Extent) -> list[Row]:
    """Every penalty against l1 and against none, right after pruning and after tuning.

    Not at the strongest strength: of one seed an interval knows test images only.
    """
    runs = {m: [named(m, seed) for seed in extent.seeds] for m in (NONE, *extent.penalties)}
    found = []
    for network, against, method in product(("pruned", "fine-tuned"), ("l1", NONE), runs):
        if method not in (against, NONE):
            one = verdict(root, runs[method], runs[against], "", network=network)
            row = {"network": network, "penalty": method, "against": against}
            found += [row | one] if one else []
    return found
