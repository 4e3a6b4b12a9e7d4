"""What the comparison of Hinge found: accuracies, its parts, verdicts, and the figure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from exact_resnets import Extent
from hinge_resnet20 import (
    ABLATION,
    BASE,
    HINGE,
    LARGER,
    LONGER,
    OTHERS,
    TABLE,
    TAUGHT,
    named,
)
from measured import Row, metrics, publish, refuse_empty, spread, verdict, write_markdown

FOUND = (
    "From published weights at half of the multiply-adds; test accuracy, mean and standard "
    "deviation over seeds. `search` is epochs before the cut; `compressed` is right after it, "
    "`recomputed` with batch-norm statistics of training images, `tuned` after five epochs. "
    "The images are among those the weights were trained on."
)
PARTS = f"{BASE}, with one part left out, or tuned in another way; likewise for two others."
VERDICTS = "Error differences, paired over seeds and test images; undecided where 0 is inside."
LARGE = "ResNet-56, one seed."


def write_tables(root: Path, out: Path, extent: Extent) -> None:
    """Methods, parts and verdicts as csv, on the screen and in one markdown file."""
    seeds = extent.seeds
    methods = [_row(root, m, seeds) for m in (*HINGE, *OTHERS, "network slimming", "from scratch")]
    refuse_empty(methods)
    parts = [_row(root, method, seeds) for method in (*_retuned(), BASE, *ABLATION)]
    larger = [_row(root, m, seeds[:1], "resnet56") for m in LARGER] if extent.larger else []
    written = [
        publish(out, TABLE, "ResNet-20 at half of the MACs", methods, FOUND),
        publish(out, f"{TABLE}_parts", "parts of Hinge", parts, PARTS),
        publish(out, f"{TABLE}_resnet56", "ResNet-56", larger, LARGE),
        publish(out, f"{TABLE}_verdicts", "verdicts", _verdicts(root, seeds), VERDICTS),
    ]
    write_markdown(out / f"{TABLE}.md", *written)


def _retuned() -> list[str]:
    return [f"{m}, distilled" for m in TAUGHT] + [f"{m}, tuned longer" for m in LONGER]


def _row(root: Path, method: str, seeds: Sequence[int], model: str = "resnet20") -> Row:
    """One row of measured figures over the seeds that have finished."""
    done = [run for s in seeds if metrics(root, run := named(method, s, model), "measure")]

    def over(stage: str, key: str, form: str = "{:.2f}") -> str:
        found = [(metrics(root, _home(run, stage), stage) or {}).get(key) for run in done]
        return spread([value for value in found if value is not None], form)

    return {
        "method": method,
        "seeds": len(done),
        "search": spread([_epochs(root, run) for run in done], "{:.1f}"),
        "compressed %": over("prune", "top1"),
        "recomputed %": over("prune", "after/dropped_recomputed"),
        "tuned %": over("finetune", "top1"),
        "parameters": over("prune", "params", "{:,.0f}"),
        "MACs": over("prune", "macs", "{:,.0f}"),
        **({} if method in _retuned() else {"CPU speed-up": over("measure", "speedup")}),
    }


def _home(run: str, stage: str) -> str:
    """Where a stage of a run is: networks that were tuned in another way were cut elsewhere."""
    if stage != "prune":
        return run
    for how in ("_distilled", "_tuned-longer"):
        run = run.removesuffix(how)
    return run


def _epochs(root: Path, run: str) -> float:
    file = root / _home(run, "prune") / "sparsify" / "metrics.csv"
    if not file.is_file():
        return 0
    with file.open() as stream:
        return len(list(csv.DictReader(stream)))


def _verdicts(root: Path, seeds: Sequence[int]) -> list[Row]:
    """Every variant of Hinge against the others, every part against the whole."""
    pairs = [(BASE, other) for other in (*OTHERS, "network slimming", "from scratch")]
    pairs += [(method, BASE) for method in (*HINGE, *ABLATION) if method != BASE]
    pairs += [(f"{method}, distilled", method) for method in TAUGHT]
    pairs += [(BASE, f"{method}, tuned longer") for method in LONGER]
    found = []
    for network in ("pruned", "fine-tuned"):
        for method, against in pairs:
            if network == "pruned" and {method, against} & {*_retuned()}:
                continue  # they were cut in other runs
            both = ([named(m, seed) for seed in seeds] for m in (method, against))
            one = verdict(root, *both, "", network=network)
            row = {"network": network, "method": method, "against": against}
            found += [row | one] if one else []
    return found
