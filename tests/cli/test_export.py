"""prunekit export on a finished run, and latency on every engine."""

from __future__ import annotations

import csv
import json
import sys

import pytest
import torch

from prunekit.data import Synthetic
from prunekit.surgery import load_model

ort = pytest.importorskip("onnxruntime", reason="needs the extra: pip install prunekit[export]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install prunekit[export]")

ODD = """
import torch

class Odd(torch.nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.fc = torch.nn.Linear(28 * 28, classes)

    def forward(self, x):
        x = torch.special.bessel_j0(x)  # ONNX has no such thing
        return self.fc(torch.flatten(x, 1))
"""


def report(stage):
    return json.loads((stage / "report.json").read_text())


def top1(file, images, labels):
    """The accuracy of an ONNX file in percent, by onnxruntime alone."""
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return 100 * float((torch.from_numpy(logits).argmax(1) == labels).double().mean())


def test_export_of_the_latest_stage_and_int8(go, finished):
    out = go("export", "name=whole", "quantize=int8", "quantize.calibration=64")
    place = finished / "outputs/whole/export"
    assert {file.name for file in place.iterdir()} == {
        *("settings.json", "report.json", "model.onnx", "model.pt2", "model.int8.onnx")
    }
    found = report(place)
    assert found["source"].startswith("finetune/") and found["settings"]["export"]["opset"] == 18
    metrics = found["metrics"]
    images, labels = next(iter(Synthetic().load().test.epoch(1000, None)))
    assert metrics["onnx_top1"] == pytest.approx(top1(place / "model.onnx", images, labels))
    assert metrics["onnx_top1"] == pytest.approx(metrics["top1"], abs=0.6)
    assert metrics["int8_top1"] == pytest.approx(
        top1(place / "model.int8.onnx", images, labels), abs=1
    )
    assert metrics["calibration"] == 64 and metrics["opset"] == 18
    for kind, name in (("onnx", "model.onnx"), ("torch", "model.pt2")):
        assert metrics[f"{kind}_bytes"] == (place / name).stat().st_size
        assert metrics[f"{kind}_difference"] <= 1e-4
    speedup = metrics["onnx_ms"] / metrics["int8_ms"]
    assert metrics["int8_speedup"] == pytest.approx(speedup, rel=1e-2)
    model = load_model(finished / "outputs/whole/finetune/model.pt").model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.export.load(place / "model.pt2").module()(images), model(images)
        )
    assert out.startswith("export ") and "model.int8.onnx" in out
    again = go("export", "name=whole", "quantize=int8", "quantize.calibration=64")
    assert "finished before" in again and "model.int8.onnx" in again


def test_export_in_the_pipeline_comes_before_measure(cli, tmp_path):
    found = cli(
        "run",
        *("name=all", "pipeline=[pretrain,measure,export]", "export=torch"),
        "latency.engines=[eager,onnxruntime]",
    )
    assert found.code == 0 and found.err == ""
    lines = [line.split()[0] for line in found.out.splitlines() if "->" in line]
    assert lines == ["pretrain", "export", "measure"]
    assert "model.pt2" in found.out and "onnxruntime speed-up" in found.out
    assert report(tmp_path / "outputs/all/measure")["source"].startswith("pretrain/")
    with open(tmp_path / "outputs/all/measure/comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for column, ratio in (("cpu_ms", "speedup"), ("cpu_ms_onnxruntime", "speedup_onnxruntime")):
            assert float(row[f"{column}_q1"]) <= float(row[column])
            expected = float(rows[0][column]) / float(row[column])
            assert float(row[ratio]) == pytest.approx(expected, rel=1e-3)


def test_another_source_and_formats(go, finished):
    go("export", "name=early", "source=outputs/whole/pretrain", "export=torch")
    place = finished / "outputs/early/export"
    assert report(place)["source"].startswith("pretrain/")
    assert not (place / "model.onnx").exists() and "opset" not in report(place)["metrics"]


def test_an_operator_that_cannot_be_exported_is_one_line(cli, tmp_path, monkeypatch):
    (tmp_path / "odd_network.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    lenet = ("~model.widths", "~model.in_channels", "~model.relu_convs")
    model = (*lenet, "model._target_=odd_network.Odd", "name=odd")
    assert cli("pretrain", *model).code == 0
    found = cli("export", *model)
    assert found.code == 1 and found.out == "" and found.err.count("\n") == 1
    assert "bessel_j0" in found.err and "odd_network.py:10" in found.err
    assert not (tmp_path / "outputs/odd/export").exists()
    assert cli("export", *model, "export=torch").code == 0
    sys.modules.pop("odd_network")


def test_without_images_there_are_files_and_times_but_no_accuracy(go, finished):
    shape = ("source=outputs/whole", "dataset=none", "dataset.shape=[1,28,28]", "name=blind")
    out = go("export", *shape)
    metrics = report(finished / "outputs/blind/export")["metrics"]
    assert "model.onnx" in out and not {"top1", "onnx_top1"} & set(metrics)
    assert (
        go("measure", *shape) and "cpu_ms" in report(finished / "outputs/blind/measure")["metrics"]
    )
    assert not (finished / "outputs/blind/measure/correct.pt").exists()
    line = go("export", *shape, "quantize=int8", "overwrite=true", code=1)
    assert "training images" in line and line.count("\n") == 1


def test_int8_wants_the_onnx_file(go, finished):
    line = go(
        "export", "name=whole2", "source=outputs/whole", "export=torch", "quantize=int8", code=1
    )
    assert line.count("\n") == 1 and "export=both or export=onnx" in line
    assert not (finished / "outputs/whole2/export").exists()


def test_what_fails_later_leaves_no_file(go, finished, monkeypatch):
    from prunekit.errors import ExportError
    from prunekit.export import Int8

    def fail(*_):
        raise ExportError("the second half fails")

    monkeypatch.setattr(Int8, "write", fail)
    arguments = ("export", "name=half", "source=outputs/whole", "quantize=int8")
    assert go(*arguments, code=1) == "prunekit: the second half fails\n"
    assert not (finished / "outputs/half").exists()


def test_without_a_compiler_the_rest_is_measured(go, finished, monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    out = go("measure", "name=bare", "source=outputs/whole", "latency.engines=[compile,eager]")
    assert "note: no latency of compile on the CPU: torch.compile finds no C++ compiler" in out
    metrics = report(finished / "outputs/bare/measure")["metrics"]
    assert "cpu_ms" in metrics and "speedup" in metrics and "cpu_ms_compile" not in metrics
