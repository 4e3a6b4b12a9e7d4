"""What the comparison on similarities found: accuracies, what kept sets share, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from exact_resnets import Extent
from measured import NOT_RUN, Row, metrics, publish, refuse_empty, spread, verdict, write_markdown
from slasso_resnet20 import (
    KERNELS,
    LARGER,
    PLAIN,
    PUBLISHED_KERNEL,
    SEARCHED,
    STRUCTURED,
    TABLE,
    TUNED,
    VARIANTS,
    named,
)

from prunekit.runs.files import read_json

BEFORE = (
    "Test accuracy right after the cut and before any tuning, in percent, at the same widths; mean "
    "and standard deviation over calibration batches. `recomputed`: batch-norm statistics of "
    "training images. The last columns: the share of kept inner channels that max-CKA (same kernel "
    "and batch) and the L1 norm keep too; by chance it is the share of channels that stay."
)
TUNING = "After five epochs of tuning; mean and standard deviation over seeds."
VERDICTS = "Error differences, paired over seeds and test images; undecided where 0 is inside."
SEARCH = "Algorithm 1 as published: one strength a layer, bisected for half of its filters."
LARGE = "ResNet-56, one seed."


def write_tables(root: Path, out: Path, extent: Extent) -> None:
    """Accuracy before and after tuning, and verdicts, as csv, on the screen and in markdown."""
    seeds = extent.seeds
    rows = [_before(root, m, seeds, kernel) for kernel in KERNELS for m in STRUCTURED]
    rows += [_before(root, method, seeds) for method in (*PLAIN, *VARIANTS)]
    refuse_empty(rows)
    tuned = [_tuned(root, method, seeds) for method in (*TUNED, "from scratch")]
    larger = [_tuned(root, m, seeds[:1], "resnet56") for m in LARGER] if extent.larger else []
    search = [_searched(root, method, seeds) for method in SEARCHED]
    title = "ResNet-20 at half of the MACs"
    write_markdown(
        out / f"{TABLE}.md",
        publish(out, f"{TABLE}_before", f"{title}, before tuning", rows, BEFORE),
        publish(out, TABLE, f"{title}, tuned", tuned, TUNING),
        publish(out, f"{TABLE}_resnet56", "ResNet-56 at half of the MACs", larger, LARGE),
        publish(out, f"{TABLE}_search", "published search", search, SEARCH),
        publish(out, f"{TABLE}_verdicts", "verdicts", _verdicts(root, seeds), VERDICTS),
    )


def _before(root: Path, method: str, seeds: Sequence[int], kernel: str = "") -> Row:
    """Accuracy before tuning, and how much the kept sets share with two plain orders."""
    runs = {s: named(method, s, kernel) for s in seeds}
    done = {s: run for s, run in runs.items() if metrics(root, run, "prune")}
    kernel = kernel or (PUBLISHED_KERNEL if method in VARIANTS else "")
    plain = {s: named("max-CKA", s, kernel or PUBLISHED_KERNEL) for s in done}
    norms = {s: named("L1 norm", s) for s in done}
    return {
        "method": method,
        "kernel": kernel or "-",
        "seeds": len(done),
        "kept %": _over(root, done.values(), "prune", "after/dropped"),
        "recomputed %": _over(root, done.values(), "prune", "after/dropped_recomputed"),
        "as max-CKA": _overlap(root, done, plain),
        "as L1 norm": _overlap(root, done, norms),
    }


def _tuned(root: Path, method: str, seeds: Sequence[int], model: str = "resnet20") -> Row:
    """Accuracy before and after tuning, and what it costs."""
    done = [run for s in seeds if metrics(root, run := named(method, s, model=model), "measure")]
    return {
        "method": method,
        "seeds": len(done),
        "kept %": _over(root, done, "prune", "after/dropped"),
        "recomputed %": _over(root, done, "prune", "after/dropped_recomputed"),
        "tuned %": _over(root, done, "finetune", "top1"),
        "parameters": _over(root, done, "prune", "params", "{:,.0f}"),
        "MACs": _over(root, done, "prune", "macs", "{:,.0f}"),
        "CPU speed-up": _over(root, done, "measure", "speedup"),
    }


def _searched(root: Path, method: str, seeds: Sequence[int]) -> Row:
    """What the published search left, and the accuracy of that."""
    done = [run for s in seeds if metrics(root, run := named(method, s), "prune")]
    counts = [fmean(_shares(root, run)) * 100 for run in done]
    return {
        "method": method,
        "seeds": len(done),
        "filters kept, % of a layer": spread(counts, "{:.1f}"),
        "MACs": _over(root, done, "prune", "macs", "{:,.0f}"),
        "kept %": _over(root, done, "prune", "after/dropped"),
        "recomputed %": _over(root, done, "prune", "after/dropped_recomputed"),
    }


def _verdicts(root: Path, seeds: Sequence[int]) -> list[Row]:
    """Each tuned method against the plain ones, before and after tuning."""
    against = ("max-CKA", "L1 norm", "random channels", "from scratch")
    pairs = [(method, other) for method in TUNED for other in against if method != other]
    found = []
    for network in ("pruned", "fine-tuned"):
        for method, other in pairs:
            both = ([named(m, seed) for seed in seeds] for m in (method, other))
            one = verdict(root, *both, "", network=network)
            row = {"network": network, "method": method, "against": other}
            found += [row | one] if one else []
    return found


def _over(root: Path, runs: Sequence[str], stage: str, key: str, form: str = "{:.2f}") -> str:
    found = [(metrics(root, run, stage) or {}).get(key) for run in runs]
    return spread([value for value in found if value is not None], form)


def _kept(root: Path, run: str) -> dict[str, set[int]]:
    """The channels that a run keeps of every group that lost some."""
    groups = read_json(root / run / "prune" / "plan.json")["groups"]
    return {n: set(entry["indices"]) for n, entry in groups.items() if entry["kept"] < entry["of"]}


def _shares(root: Path, run: str) -> list[float]:
    """What is left of every group, those that could not lose any left out."""
    groups = read_json(root / run / "prune" / "plan.json")["groups"].values()
    return [entry["kept"] / entry["of"] for entry in groups if len(entry["producers"]) == 1]


def _overlap(root: Path, runs: dict[int, str], others: dict[int, str]) -> str:
    """The mean share of kept channels that another run keeps too; "equal" where all are."""
    pairs = [(runs[s], others[s]) for s in runs if (root / others[s] / "prune/plan.json").is_file()]
    if not pairs:
        return NOT_RUN
    shares = [_shared(_kept(root, first), _kept(root, second)) for first, second in pairs]
    return "equal" if min(shares) == 1 else spread(shares)


def _shared(first: dict[str, set[int]], second: dict[str, set[int]]) -> float:
    return fmean(len(kept & second.get(name, kept)) / len(kept) for name, kept in first.items())
