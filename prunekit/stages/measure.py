"""Measure the run's networks side by side: size, cost, accuracy, latency, memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn

from prunekit.build import build
from prunekit.data import Data
from prunekit.errors import ExportError
from prunekit.measure import Latency, LatencyTest, counted_macs, file_bytes, layer_rows, peak_memory
from prunekit.methods.slimming import slimming_flops, slimming_params
from prunekit.reporting.tables import comparison
from prunekit.runs.files import write_csv
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir, model_file
from prunekit.stages.common import counts, load_source, outputs, quality
from prunekit.stages.root import Source
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Stage
from prunekit.torch_io import write_torch
from prunekit.training import keeps_statistics, predictions

LABELS = {
    "pretrain": "dense",
    "sparsify": "sparsified",
    "prune": "pruned",
    "finetune": "fine-tuned",
}
_SPEEDUP = re.compile(r"(cpu|gpu)_ms((?:_compile|_onnxruntime)?)")  # columns that have a speed-up


@dataclass(frozen=True)
class Measure(Stage):
    """Compare the run's models; the metrics are those of the last one.

    The dense network is the run's own, or the source, or the architecture rebuilt untrained.
    """

    name = "measure"
    compares = tuple(LABELS)
    latency: Annotated[LatencyTest, "how networks are timed"]
    source: Source

    def show(self, place: StageDir) -> None:
        """The networks side by side."""
        comparison(place.path / "comparison.csv")

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Measure all networks in the same way."""
        timing, data = self.latency, self.data(runtime)
        files = _files(self.source, place)
        saved = {label: load_source(file, runtime) for label, file in files.items()}
        models = {label: one.model for label, one in saved.items()}
        rows = [
            {"network": label, **_row(model, data, files[label])} for label, model in models.items()
        ]
        others = _others(models, data)
        judged = {label: model for label, model in models.items() if label not in others}
        for row in rows:
            if row["network"] in judged:
                row.update(quality(judged[str(row["network"])], data, runtime))
        notes = [*data.notes, *others.values()]
        if "dense" not in models:
            dense = build(next(iter(saved.values())).arch, "arch").to(runtime.device)
            models = {"dense": dense, **models}
            rows.insert(0, {"network": "dense", **counts(dense, data)})
            notes.append("the dense network is rebuilt untrained: its accuracy is not known here")
        notes += _add_latency(rows, models, data, timing, runtime)
        for row in rows:
            row.update(_ratios(rows[0], row))
        write_csv(place.path / "comparison.csv", rows)
        ends = {label: models[label] for label in ("dense", [*models][-1])}
        write_csv(place.path / "layers.csv", layer_rows(ends, data.example, timing))
        if data.test.size:
            correct = {label: _correct(model, data) for label, model in judged.items()}
            write_torch(place.path / "correct.pt", correct)
        metrics = {key: value for key, value in rows[-1].items() if key != "network"}
        timed = [key for key in rows[0] if _SPEEDUP.fullmatch(key)]
        dense_row = {f"dense_{key}": rows[0].get(key) for key in ("top1", "params", "macs", *timed)}
        return Outcome({**metrics, **dense_row}, tuple(notes))


def _files(source: str | None, stage: StageDir) -> dict[str, Path]:
    """Label to model file: the finished stages of this run, and the source it came from."""
    found = {
        label: stage.run.stage(name).path / "model.pt"
        for name, label in LABELS.items()
        if stage.run.stage(name).finished
    }
    if "pruned" in found:
        found.pop("sparsified", None)
    if source is not None and "dense" not in found:
        found = {"source": model_file(source), **found}
    return found or {"network": stage.source}


def _others(models: Mapping[str, nn.Module], data: Data) -> dict[str, str]:
    """The networks for other classes, which got a new last layer later, and what to say of them."""
    found = {label: outputs(model, data) for label, model in models.items() if data.classes}
    return {
        label: f"{label} has {count} outputs, not {data.classes}: its accuracy is not known here"
        for label, count in found.items()
        if count != data.classes
    }


def _correct(model: nn.Module, data: Data) -> torch.Tensor:
    """Whether each test image is recognised, for comparisons that pair images."""
    logits, labels = predictions(model, data.test, next(model.parameters()).device)
    return (logits.argmax(dim=1) == labels).cpu()


def _row(model: nn.Module, data: Data, file: Path) -> Metrics:
    example = data.example.to(next(model.parameters()).device)
    return {
        **counts(model, data),
        **_as_published(model, example),
        "fvcore_macs": counted_macs(model, example),
        "memory_bytes": peak_memory(model, example),
        "file_bytes": file_bytes(file),
    }


def _as_published(model: nn.Module, example: torch.Tensor) -> Metrics:
    """What tables of network slimming call FLOPs and parameters, for networks with batch norm."""
    if not keeps_statistics(model):
        return {}
    return {
        "flops_slimming": slimming_flops(model, example),
        "params_slimming": slimming_params(model, example),
    }


def _add_latency(
    rows: list[Metrics],
    models: dict[str, nn.Module],
    data: Data,
    timing: LatencyTest,
    runtime: Runtime,
) -> list[str]:
    """Time all networks in alternation, on the CPU and, where there is one, on the GPU.

    Each engine by itself; returns why one could not be timed.
    """
    notes = []
    for kind, device in _devices(runtime).items():
        for engine in timing.engines:
            try:
                times = timing.run(models, data.example, device, engine)
            except ExportError as error:
                notes.append(f"no latency of {engine} on the {kind.upper()}: {error}")
                continue
            for row in rows:
                row.update(_latency_columns(kind, engine, times[str(row["network"])]))
    return notes


def _devices(runtime: Runtime) -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"cpu": "cpu"}
    chosen = str(runtime.device)
    return {"cpu": "cpu", "gpu": chosen if chosen.startswith("cuda") else "cuda"}


def _latency_columns(kind: str, engine: str, latency: Latency) -> Metrics:
    """`cpu_ms` is eager, `cpu_ms_compile` and `cpu_ms_onnxruntime` say their engine."""
    name = f"{kind}_ms" if engine == "eager" else f"{kind}_ms_{engine}"
    return {
        name: round(latency.median_ms, 4),
        f"{name}_q1": round(latency.q1, 4),
        f"{name}_q3": round(latency.q3, 4),
    }


def _ratios(dense: Metrics, row: Metrics) -> Metrics:
    """How many times smaller or faster than the dense network."""
    names = {"params": "params_ratio", "macs": "macs_ratio"}
    for key in row:
        found = _SPEEDUP.fullmatch(key)
        if found:
            device, engine = found.groups()
            names[key] = ("gpu_speedup" if device == "gpu" else "speedup") + engine
    return {ratio: round(float(dense[key]) / float(row[key]), 4) for key, ratio in names.items()}
