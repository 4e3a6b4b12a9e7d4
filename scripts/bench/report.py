"""Speed and size of reports: a thousand runs into one table, a hundred into one page.

Runs are made by hand, six finished stages each. Seconds are those of one processor, the fewest of
the rounds.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prunekit.reporting.collect import collect
from prunekit.reporting.page.document import document
from prunekit.reporting.tables import summary
from prunekit.runs.report import Report
from scripts.bench.ratios import Row, below, seconds

RUNS, PAGE = 1000, 100
MOST_SECONDS, MOST_MEGABYTES = 3.0, 5.0
STAGES = ("pretrain", "sparsify", "prune", "features", "finetune", "measure")
WIDTHS = (20, 50, 500)  # of LeNet's layers
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9}


def rows(rounds: int) -> Iterator[Row]:
    """Yield the seconds of a table and the size of a page."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for index in range(RUNS):
            write_run(place / f"lam={index:04}", index)
        summary(collect([place / "lam=0000"]))  # pandas is imported once
        work, clock = lambda: summary(collect([place])), time.process_time
        fewest = min(seconds(work, clock) for _ in range(rounds))
        stages = collect([place / f"lam={index:04}" for index in range(PAGE)])
        size = len(document(stages, summary(stages), "bench").encode()) / 1e6
    what = f"{RUNS:,} runs of {len(STAGES)} reports into a table, seconds"
    yield below(what, fewest, MOST_SECONDS)
    yield below(f"page of {PAGE} runs, megabytes", size, MOST_MEGABYTES)


def write_run(place: Path, index: int) -> None:
    """Write a run as large as those of the demo: settings, metrics, a plan and histories."""
    for stage in STAGES:
        report = Report(stage, settings(stage, index), None, metrics(stage, index))
        (place / stage).mkdir(parents=True)
        (place / stage / "report.json").write_text(json.dumps(report.to_dict(), indent=2))
        (place / stage / "settings.json").write_text(json.dumps(report.settings, indent=2))
        if stage in ("pretrain", "sparsify", "finetune"):
            history = "".join(f"{e},{e / 9:.9f},{90 + e / 9:.9f}\n" for e in range(20))
            (place / stage / "metrics.csv").write_text("epoch,train_loss,val_top1\n" + history)
    groups = {
        f"layer{n}": {"kept": of // 2, "of": of, "indices": [*range(of // 2)], "producers": []}
        for n, of in enumerate(WIDTHS)
    }
    (place / "prune" / "plan.json").write_text(json.dumps({"groups": groups, "notes": []}))


def settings(stage: str, index: int) -> dict[str, object]:
    """Return the settings of a stage; runs differ in strength."""
    lam = 1e-5 * (index + 1)
    decay = {"_target_": "prunekit.training.Cosine", "final": 0.0, "warmup": 0.1}
    return {
        "seed": 0,
        "model": {"name": "lenet5", "_target_": "prunekit.models.LeNet5", "widths": [*WIDTHS]},
        "dataset": {"name": "digits", "_target_": "prunekit.data.Digits", "val": 180},
        "regularizer": {"name": "l21", "lam": lam, "penalty": {"_target_": "L1", "lam": lam}},
        "schedule": {stage: {"epochs": 20, "batch": 32, "optimizer": SGD, "decay": decay}},
    }


def metrics(stage: str, index: int) -> dict[str, float]:
    """Return the figures of a stage."""
    common = {"top1": 90 + index % 97 / 10, "top5": 99.0, "params": 431080 - 400 * index}
    kept = {f"kept/layer{n}": of // 2 for n, of in enumerate(WIDTHS)}
    dense = {"dense_top1": 98.0, "dense_params": 431080, "dense_macs": 2293000, "cpu_ms": 5.0}
    extra = {"prune": kept, "measure": dense}.get(stage, {})
    return {**common, "macs": 2293000 - 2000 * index, **extra}
