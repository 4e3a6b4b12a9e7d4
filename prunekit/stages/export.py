"""The stage that writes the model for other engines, and checks that they agree with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.console import table
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.export import Export, Exported, Int8, OnnxModule, Precision
from prunekit.measure import LatencyTest
from prunekit.modes import evaluating
from prunekit.outputs import logits_of
from prunekit.runs.report import Metrics, Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.network import load_source, measure_accuracy, measure_size
from prunekit.stages.settings import Runtime
from prunekit.stages.stage import Stage
from prunekit.training import evaluate

FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx", "torch": "model.pt2"}


@dataclass(frozen=True)
class ExportFiles(Stage):
    """Writes all files, or none where one of them fails."""

    name = "export"
    latency: Annotated[LatencyTest, "how files are timed"]
    export: Annotated[Export, "which files are written"]
    quantize: Annotated[Precision, "number format of a further file"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.quantize, Int8) and "onnx" not in self.export.formats:
            raise ConfigError(
                "quantize=int8 starts from the ONNX file, which export.formats leaves out; use "
                "export=both or export=onnx"
            )

    def show(self, stage_dir: StageDir) -> None:
        """Print the table of files."""
        metrics = stage_dir.report().metrics
        columns = ("file", "MB", "difference", "top-1 %", "CPU ms")
        lines = [_line(kind, metrics) for kind in FILES if f"{kind}_bytes" in metrics]
        table("exported files", columns, lines)

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Write the files and compare their outputs with those of the network."""
        model = load_source(stage_dir.source, runtime).model
        data = self.data(runtime)
        _check_images(self.quantize, data)
        folder, leading = stage_dir.path, _leading_output(model, data)
        with _all_or_none(folder):
            files = self.export.write(model, data.example, folder)
            facts = {**_file_metrics(files), **_accuracy(folder, "onnx", data, leading)}
            if isinstance(self.quantize, Int8):
                facts |= _quantise(self.quantize, folder, data)
                facts |= _accuracy(folder, "int8", data, leading)
                facts |= _latency(folder, data, self.latency)
        size = measure_size(model, data)
        accuracy = measure_accuracy(model, data, runtime)
        return Outcome({**accuracy, **size, **facts}, (*data.notes, *slower_notes(facts)))


def _check_images(precision: Precision, data: Data) -> None:
    if isinstance(precision, Int8) and not data.train.size:
        raise ConfigError(
            "quantize=int8 sets ranges by training images and this dataset has none; choose "
            "dataset=..., or quantize=none"
        )


def _line(kind: str, metrics: Metrics) -> tuple[str, ...]:
    megabytes = float(metrics[f"{kind}_bytes"] or 0) / 1e6
    formats = {"difference": "{:.1e}", "top1": "{:.2f}", "ms": "{:.3g}"}
    values = [(metrics.get(f"{kind}_{key}"), form) for key, form in formats.items()]
    texts = ["-" if value is None else form.format(value) for value, form in values]
    return (FILES[kind], f"{megabytes:.2f}", *texts)


@contextmanager
def _all_or_none(folder: Path) -> Iterator[None]:
    """Delete the files that were exported so far when the rest fails."""
    try:
        yield
    except BaseException:
        for name in (*FILES.values(), f"{FILES['onnx']}.data"):
            (folder / name).unlink(missing_ok=True)
        raise


def _file_metrics(files: dict[str, Exported]) -> Metrics:
    metrics: Metrics = {}
    for kind, file in files.items():
        metrics |= {f"{kind}_bytes": file.bytes, f"{kind}_difference": file.difference}
        if file.opset is not None:
            metrics["opset"] = file.opset
    return metrics


def _quantise(precision: Int8, folder: Path, data: Data) -> Metrics:
    images = (x for x, _ in data.train.sample(precision.calibration, precision.batch))
    size = precision.write(folder / FILES["onnx"], images, folder / FILES["int8"])
    return {"int8_bytes": size, "calibration": min(precision.calibration, data.train.size)}


def slower_notes(facts: Metrics) -> list[str]:
    """Return a note where int8 takes longer than float32, as on CPUs without its instructions."""
    speedup = facts.get("int8_speedup")
    if not isinstance(speedup, float) or speedup >= 1:
        return []
    return [
        f"{FILES['int8']} is slower here: {facts['int8_ms']} ms against {facts['onnx_ms']} ms, "
        f"{speedup:.2f} times as fast as {FILES['onnx']}; it may still be faster on another device"
    ]


class _OneOutput(nn.Module):
    """An exported network that returns one of its outputs, by its place in the file."""

    def __init__(self, network: nn.Module, place: int) -> None:
        super().__init__()
        self.network, self.place = network, place

    def forward(self, images: Tensor) -> Tensor:
        """Return that output."""
        outputs = self.network(images)
        return outputs if isinstance(outputs, Tensor) else outputs[self.place]


@torch.inference_mode()
def _leading_output(model: nn.Module, data: Data) -> int:
    """Return the place of the logits among the outputs of a network; 0 where none are known."""
    if not data.classes:
        return 0
    with evaluating(model):
        output = model(data.example.to(next(model.parameters()).device))
    logits = logits_of(output)
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return next((place for place, leaf in enumerate(leaves) if leaf is logits), 0)


def _accuracy(folder: Path, kind: str, data: Data, leading: int) -> Metrics:
    """Return test accuracy on onnxruntime in percent; empty without test images or the file.

    `leading` is the place of the logits among the outputs.
    """
    if not data.test.size or not (folder / FILES[kind]).is_file():
        return {}
    network = _OneOutput(OnnxModule(folder / FILES[kind], torch.get_num_threads()), leading)
    return {f"{kind}_top1": round(evaluate(network, data.test, "cpu")["top1"], 4)}


def _latency(folder: Path, data: Data, timing: LatencyTest) -> Metrics:
    """Return milliseconds of the float and the int8 file, timed in turns on onnxruntime."""
    runners = {kind: OnnxModule(folder / FILES[kind], timing.threads) for kind in ("onnx", "int8")}
    times = timing.time_callables(runners, timing.inputs(data.example))
    metrics: Metrics = {f"{kind}_ms": round(time.median_ms, 4) for kind, time in times.items()}
    speedup = times["onnx"].median_ms / times["int8"].median_ms
    return {**metrics, "int8_speedup": round(speedup, 4)}
