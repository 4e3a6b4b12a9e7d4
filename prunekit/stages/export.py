"""Write the model for other engines, and see that it says the same there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

from prunekit.console import table
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.export import Export, Exported, Int8, OnnxModule, Precision
from prunekit.measure import LatencyTest
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.common import counts, load_source, quality
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Stage
from prunekit.training import evaluate

FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "torch": "model.pt2"}


@dataclass(frozen=True)
class ExportFiles(Stage):
    """Write the files; all of them are there afterwards, or none."""

    name = "export"
    latency: Annotated[LatencyTest, "how files are timed"]
    export: Annotated[Export, "which files are written"]
    quantize: Annotated[Precision, "of numbers in a further file"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.quantize, Int8) and "onnx" not in self.export.formats:
            raise ConfigError(
                "quantize=int8 starts from the ONNX file, which export.formats leaves out; use "
                "export=both or export=onnx"
            )

    def show(self, place: StageDir) -> None:
        """The exported files, one a row."""
        show_files(place.report().metrics)

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Write, and see that the files say what the network does."""
        model = load_source(place.source, runtime).model
        data = self.data(runtime)
        _check_images(self.quantize, data)
        with _all_or_none(place.path):
            written = self.export.write(model, data.example, place.path)
            found = {**_facts(written), **_accuracy(place.path, "onnx", data)}
            if isinstance(self.quantize, Int8):
                found |= _quantise(self.quantize, place.path, data)
                found |= _accuracy(place.path, "int8", data)
                found |= _latency(place.path, data, self.latency)
        metrics = {**quality(model, data, runtime), **counts(model, data), **found}
        return Outcome(metrics, data.notes)


def _check_images(precision: Precision, data: Data) -> None:
    if isinstance(precision, Int8) and not data.train.size:
        raise ConfigError(
            "quantize=int8 sets ranges by training images and this dataset has none; choose "
            "dataset=..., or quantize=none"
        )


def show_files(metrics: Metrics) -> None:
    """Print the exported files, one a row."""
    columns = ("file", "MB", "difference", "top-1 %", "CPU ms")
    forms = {"bytes": "{:.2f}", "difference": "{:.1e}", "top1": "{:.2f}", "ms": "{:.3g}"}
    rows = []
    for kind, name in FILES.items():
        values = {key: metrics.get(f"{kind}_{key}") for key in forms}
        if values["bytes"] is not None:
            values["bytes"] = float(values["bytes"]) / 1e6
            rows.append((name, *(_shown(values[key], form) for key, form in forms.items())))
    table("exported files", columns, rows)


def _shown(value: object, form: str) -> str:
    return "-" if value is None else form.format(value)


@contextmanager
def _all_or_none(folder: Path) -> Iterator[None]:
    """Delete what was exported so far when the rest fails."""
    try:
        yield
    except BaseException:
        for name in (*FILES.values(), f"{FILES['onnx']}.data"):
            (folder / name).unlink(missing_ok=True)
        raise


def _facts(written: dict[str, Exported]) -> Metrics:
    found: Metrics = {}
    for kind, file in written.items():
        found |= {f"{kind}_bytes": file.bytes, f"{kind}_difference": file.difference}
        if file.opset is not None:
            found["opset"] = file.opset
    return found


def _quantise(precision: Int8, folder: Path, data: Data) -> Metrics:
    images = (x for x, _ in data.train.sample(precision.calibration, precision.batch))
    size = precision.write(folder / FILES["onnx"], images, folder / FILES["int8"])
    return {"int8_bytes": size, "calibration": min(precision.calibration, data.train.size)}


def _accuracy(folder: Path, kind: str, data: Data) -> Metrics:
    """Test top-1 on onnxruntime, where there are labels and the file."""
    if not data.test.size or not (folder / FILES[kind]).is_file():
        return {}
    network = OnnxModule(folder / FILES[kind], torch.get_num_threads())
    return {f"{kind}_top1": round(evaluate(network, data.test, "cpu")["top1"], 4)}


def _latency(folder: Path, data: Data, timing: LatencyTest) -> Metrics:
    """Milliseconds of the float and the int8 file, timed in turns on onnxruntime."""
    runners = {kind: OnnxModule(folder / FILES[kind], timing.threads) for kind in ("onnx", "int8")}
    times = timing.race(runners, timing.inputs(data.example))
    found: Metrics = {f"{kind}_ms": round(time.median_ms, 4) for kind, time in times.items()}
    speedup = times["onnx"].median_ms / times["int8"].median_ms
    return {**found, "int8_speedup": round(speedup, 4)}
