"""Measure the run's networks side by side: size, cost, accuracy, latency, memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from prunekit.build import build
from prunekit.data import Data
from prunekit.measure import Latency, LatencyTest, counted_macs, file_bytes, peak_memory
from prunekit.runs.files import write_csv
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir, model_file
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.parts import counts, load_data, load_source, quality
from prunekit.torchfile import write_torch
from prunekit.training import predictions

LABELS = {
    "pretrain": "dense",
    "sparsify": "sparsified",
    "prune": "pruned",
    "finetune": "fine-tuned",
}


def measure(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Compare the run's models; the metrics are those of the last one.

    The dense network is the run's own, or the source, or the architecture rebuilt untrained.
    """
    timing: LatencyTest = build(settings["latency"], "latency")
    data = load_data(settings, runtime)
    files = _files(settings, stage)
    saved = {label: load_source(file, runtime) for label, file in files.items()}
    models = {label: one.model for label, one in saved.items()}
    rows = [
        {"network": label, **_row(model, data, files[label])} for label, model in models.items()
    ]
    for row, model in zip(rows, models.values(), strict=True):
        row.update(quality(model, data, runtime))
    notes = list(data.notes)
    if "dense" not in models:
        dense = build(next(iter(saved.values())).arch, "arch").to(runtime.device)
        models = {"dense": dense, **models}
        rows.insert(0, {"network": "dense", **counts(dense, data)})
        notes.append("the dense network is rebuilt untrained: its accuracy is not known here")
    _add_latency(rows, models, data, timing)
    for row in rows:
        row.update(_ratios(rows[0], row))
    write_csv(stage.path / "comparison.csv", rows)
    correct = {label: _correct(one.model, data) for label, one in saved.items()}
    write_torch(stage.path / "correct.pt", correct)
    metrics = {key: value for key, value in rows[-1].items() if key != "network"}
    dense_row = {f"dense_{key}": rows[0].get(key) for key in ("top1", "params", "macs", "cpu_ms")}
    return Outcome({**metrics, **dense_row}, tuple(notes))


def _files(settings: Settings, stage: StageDir) -> dict[str, Path]:
    """Label to model file: the finished stages of this run, and the source it came from."""
    found = {
        label: stage.run.stage(name).path / "model.pt"
        for name, label in LABELS.items()
        if stage.run.stage(name).finished
    }
    if "pruned" in found:
        found.pop("sparsified", None)
    if settings["source"] is not None and "dense" not in found:
        found = {"source": model_file(settings["source"]), **found}
    return found or {"network": stage.source}


def _correct(model: nn.Module, data: Data) -> torch.Tensor:
    """Whether each test image is recognised, for comparisons that pair images."""
    logits, labels = predictions(model, data.test, next(model.parameters()).device)
    return (logits.argmax(dim=1) == labels).cpu()


def _row(model: nn.Module, data: Data, file: Path) -> Metrics:
    example = data.example.to(next(model.parameters()).device)
    return {
        **counts(model, data),
        "fvcore_macs": counted_macs(model, example),
        "memory_bytes": peak_memory(model, example),
        "file_bytes": file_bytes(file),
    }


def _add_latency(
    rows: list[Metrics], models: dict[str, nn.Module], data: Data, timing: LatencyTest
) -> None:
    """Time all networks in alternation, on the CPU and, where there is one, on the GPU."""
    devices = {"cpu": "cpu", **({"gpu": "cuda"} if torch.cuda.is_available() else {})}
    for kind, device in devices.items():
        times = timing.run(models, data.example, device)
        for row in rows:
            row.update(_latency_columns(kind, times[str(row["network"])]))


def _latency_columns(kind: str, latency: Latency) -> Metrics:
    return {
        f"{kind}_ms": round(latency.median_ms, 4),
        f"{kind}_ms_q1": round(latency.q1, 4),
        f"{kind}_ms_q3": round(latency.q3, 4),
    }


def _ratios(dense: Metrics, row: Metrics) -> Metrics:
    """How many times smaller or faster than the dense network."""
    names = {"params": "params_ratio", "macs": "macs_ratio", "cpu_ms": "speedup"}
    if "gpu_ms" in row:
        names["gpu_ms"] = "gpu_speedup"
    return {ratio: round(float(dense[key]) / float(row[key]), 4) for key, ratio in names.items()}
