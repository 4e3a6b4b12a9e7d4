"""The stage that measures the run's networks side by side: size, accuracy, latency, memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from prunekit.build import build
from prunekit.data import Data
from prunekit.errors import ExportError
from prunekit.measure import (
    Latency,
    LatencyTest,
    file_bytes,
    fvcore_macs,
    layer_records,
    peak_memory,
)
from prunekit.methods.slimming import slimming_flops, slimming_params
from prunekit.reporting.tables import print_comparison
from prunekit.runs.files import write_csv
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir, model_file
from prunekit.stages.network import count_outputs, load_source, measure_accuracy, measure_size
from prunekit.stages.settings import Runtime, Source
from prunekit.stages.stage import Stage
from prunekit.torch_io import write_torch
from prunekit.training import has_running_statistics, predictions

LABELS = {
    "pretrain": "dense",
    "sparsify": "sparsified",
    "prune": "pruned",
    "finetune": "fine-tuned",
}
SCATTER = 0.1  # relative: ratios that scatter more between rounds are noted
_LATENCY = re.compile(r"(cpu|gpu)_ms((?:_compile|_onnxruntime)?)")  # columns that have a speed-up


@dataclass(frozen=True)
class Measure(Stage):
    """Compares the run's networks; its metrics are those of the last one.

    The dense network is the run's own or the source; without both it is rebuilt untrained.
    """

    name = "measure"
    compares = tuple(LABELS)
    latency: Annotated[LatencyTest, "how networks are timed"]
    source: Source

    def show(self, stage_dir: StageDir) -> None:
        """Print the table of networks."""
        print_comparison(stage_dir.path / "comparison.csv")

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Measure all networks in the same way; write comparison.csv and layers.csv."""
        timing, data = self.latency, self.data(runtime)
        files = _model_files(self.source, stage_dir)
        saved = {label: load_source(file, runtime) for label, file in files.items()}
        models = {label: loaded.model for label, loaded in saved.items()}
        records: list[Metrics] = [
            {"network": label, **_costs(model, data, files[label])}
            for label, model in models.items()
        ]
        misfits = _other_class_counts(models, data)
        tested = {label: model for label, model in models.items() if label not in misfits}
        for record in records:
            if record["network"] in tested:
                record.update(measure_accuracy(tested[str(record["network"])], data, runtime))
        notes = [*data.notes, *misfits.values()]
        if "dense" not in models:
            dense = build(next(iter(saved.values())).arch, "arch").to(runtime.device)
            models = {"dense": dense, **models}
            records.insert(0, {"network": "dense", **measure_size(dense, data)})
            notes.append("the dense network is rebuilt untrained: its accuracy is not known here")
        notes += _add_latency(records, models, data, timing, runtime)
        for record in records:
            record.update(_ratios(records[0], record))
        write_csv(stage_dir.path / "comparison.csv", records)
        ends = {label: models[label] for label in ("dense", [*models][-1])}
        write_csv(stage_dir.path / "layers.csv", layer_records(ends, data.example, timing))
        if data.test.size:
            correct = {label: _correct(model, data) for label, model in tested.items()}
            write_torch(stage_dir.path / "correct.pt", correct)
        metrics = {key: value for key, value in records[-1].items() if key != "network"}
        timed = [key for key in records[0] if _LATENCY.fullmatch(key)]
        of_dense = {f"dense_{k}": records[0].get(k) for k in ("top1", "params", "macs", *timed)}
        return Outcome({**metrics, **of_dense}, tuple(notes))


def _model_files(source: str | None, stage_dir: StageDir) -> dict[str, Path]:
    """Return label -> model file of the finished stages of this run, and of its source."""
    stages = {label: stage_dir.run.stage(name) for name, label in LABELS.items()}
    files = {label: stage.path / "model.pt" for label, stage in stages.items() if stage.finished}
    if "pruned" in files:
        files.pop("sparsified", None)
    if source is not None and "dense" not in files:
        files = {"source": model_file(source), **files}
    return files or {"network": stage_dir.source}


def _other_class_counts(models: Mapping[str, nn.Module], data: Data) -> dict[str, str]:
    """Return a note for every network that has outputs for other classes than the data set."""
    outputs = {label: count_outputs(model, data) for label, model in models.items() if data.classes}
    return {
        label: f"{label} has {count} outputs, not {data.classes}: its accuracy is not known here"
        for label, count in outputs.items()
        if count != data.classes
    }


def _correct(model: nn.Module, data: Data) -> Tensor:
    """Return a bool for every test image, True where it is recognised, to pair images by."""
    logits, labels = predictions(model, data.test, next(model.parameters()).device)
    return (logits.argmax(dim=1) == labels).cpu()


def _costs(model: nn.Module, data: Data, file: Path) -> Metrics:
    example = data.example.to(next(model.parameters()).device)
    return {
        **measure_size(model, data),
        **_slimming_costs(model, example),
        "fvcore_macs": fvcore_macs(model, example),
        "memory_bytes": peak_memory(model, example),
        "file_bytes": file_bytes(file),
    }


def _slimming_costs(model: nn.Module, example: Tensor) -> Metrics:
    """Return FLOPs and parameters as network slimming counts them; empty without batch norm."""
    if not has_running_statistics(model):
        return {}
    return {
        "flops_slimming": slimming_flops(model, example),
        "params_slimming": slimming_params(model, example),
    }


def _add_latency(
    records: list[Metrics],
    models: dict[str, nn.Module],
    data: Data,
    timing: LatencyTest,
    runtime: Runtime,
) -> list[str]:
    """Time all networks in turns, with each engine, on the CPU and on the GPU where there is one.

    Return a note for every engine that failed.
    """
    notes = []
    for kind, device in _devices(runtime).items():
        for engine in timing.engines:
            try:
                times = timing.run(models, data.example, device, engine)
            except ExportError as error:
                notes.append(f"no latency of {engine} on the {kind.upper()}: {error}")
                continue
            dense = times[str(records[0]["network"])]
            for record in records:
                latency = times[str(record["network"])]
                record.update(_latency_columns(kind, engine, latency))
                record.update(latency_batch=timing.batch, latency_threads=timing.threads)
                scatter = latency.scatter(dense)
                record[f"{_speedup(kind, _suffix(engine))}_scatter"] = round(scatter, 4)
                if scatter > SCATTER:
                    notes.append(
                        f"the {kind.upper()} speed-up of {record['network']} scatters by "
                        f"{scatter:.0%} between rounds (batches of {timing.batch}, "
                        f"{timing.threads} threads, {engine}); measure with nothing else running"
                    )
    return notes


def _devices(runtime: Runtime) -> dict[str, str]:
    if not torch.cuda.is_available():
        return {"cpu": "cpu"}
    device = str(runtime.device)
    return {"cpu": "cpu", "gpu": device if device.startswith("cuda") else "cuda"}


def _latency_columns(kind: str, engine: str, latency: Latency) -> Metrics:
    """Return median and quartiles: `cpu_ms` is eager, `cpu_ms_compile` names its engine."""
    name = f"{kind}_ms{_suffix(engine)}"
    return {
        name: round(latency.median_ms, 4),
        f"{name}_q1": round(latency.q1, 4),
        f"{name}_q3": round(latency.q3, 4),
    }


def _suffix(engine: str) -> str:
    """Return what names an engine at the end of a column; eager is not named."""
    return "" if engine == "eager" else f"_{engine}"


def _speedup(kind: str, suffix: str) -> str:
    """Return the name of a column of speed-ups."""
    return ("gpu_speedup" if kind == "gpu" else "speedup") + suffix


def _ratios(dense: Metrics, record: Metrics) -> Metrics:
    """Return how many times smaller and faster a network is than the dense one."""
    names = {"params": "params_ratio", "macs": "macs_ratio"}
    for key in record:
        if match := _LATENCY.fullmatch(key):
            names[key] = _speedup(*match.groups())
    return {
        ratio: round(_number(dense[key]) / _number(record[key]), 4) for key, ratio in names.items()
    }


def _number(value: float | str | None) -> float:
    return float("nan") if value is None else float(value)
