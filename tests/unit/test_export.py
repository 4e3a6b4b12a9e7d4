"""Exported files against the eager network, read by onnxruntime and torch.export alone."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest
import torch
from blocks import MORE
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st
from laws import Cut
from networks import BLOCKS, Network, settings
from torch import nn

import prunekit
from prunekit.errors import ArtifactError, ConfigError, ExportError
from prunekit.export import (
    Export,
    Int8,
    OnnxModule,
    TracedProgram,
    export_onnx,
    export_program,
    silent,
)
from prunekit.export import files as export_files
from prunekit.export import onnxruntime as export_onnxruntime

onnx = pytest.importorskip("onnx", reason="needs the extra: pip install prunekit[export]")
ort = pytest.importorskip("onnxruntime", reason="needs the extra: pip install prunekit[export]")
pytest.importorskip("onnxscript", reason="needs the extra: pip install prunekit[export]")


class Small(nn.Module):
    """A convolution, a batch norm with random statistics, and a linear layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)
        self.bn.running_mean.normal_()
        self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class Odd(nn.Module):
    """A network that calls an operator that ONNX lacks."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return torch.linalg.svdvals(self.conv(x).flatten(2))  # the line to blame


class Branch(Small):
    """A network that branches on the values of its input."""

    def forward(self, x):
        if x.sum() > 0:
            return super().forward(x)
        return super().forward(-x)


class OneBatch(Small):
    """A network that works for batches of two only."""

    def forward(self, x):
        return super().forward(x.reshape(2, 3, 6, 6))


class Two(nn.Module):
    """A network with two inputs and two named outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x, y):
        return {"sum": self.left(x) + self.right(y), "left": self.left(x)}


EXAMPLE = torch.zeros(1, 3, 6, 6)


def on_onnxruntime(file, *inputs, as_written=False):
    """`as_written`: no fused integer kernels, which overflow on processors without VNNI."""
    options = ort.SessionOptions()
    if as_written:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feeds = {p.name: x.numpy() for p, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


@torch.inference_mode()
def check(model, onnx_file, pt2_file, shape):
    """Check that files give the network's logits, also at other batch sizes."""
    model = model.eval()
    program = torch.export.load(pt2_file).module()
    for batch in (1, 3, 7):
        x = torch.rand(batch, *shape) - 0.5
        expected = model(x)
        scale = float(expected.abs().max())
        for found in (on_onnxruntime(onnx_file, x)[0], program(x)):
            assert float((found - expected).abs().max()) <= 1e-4 * scale


def test_files_give_the_logits_of_the_network(tmp_path, capfd):
    model = Small().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    written = prunekit.export_onnx(model, EXAMPLE, tmp_path / "deep/model.onnx")
    other = prunekit.export_program(model, EXAMPLE, tmp_path / "model.pt2")
    assert capfd.readouterr() == ("", "")
    assert model.training and all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    check(model, written.path, other.path, (3, 6, 6))
    for file in (written, other):
        assert file.bytes == file.path.stat().st_size and file.difference <= 1e-5
    assert {file.name for file in tmp_path.rglob("*.*")} == {"model.onnx", "model.pt2"}


def test_the_opset_is_that_of_the_file(tmp_path):
    written = export_onnx(Small(), EXAMPLE, tmp_path / "model.onnx", opset=20)
    proto = onnx.load(written.path)
    assert written.opset == 20 and {o.version for o in proto.opset_import if not o.domain} == {20}
    onnx.checker.check_model(proto, full_check=True)
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param and [output.name for output in proto.graph.output] == ["output"]


def check_cut(tmp_path, network, seed):
    """Check that both files of a randomly cut network give its logits."""
    example = network.float().example.float()
    narrow = Cut.random(network, (example,), seed).narrow
    files = tmp_path / "model.onnx", tmp_path / "model.pt2"
    assert TracedProgram.of(narrow, example).difference(narrow) <= 1e-6
    export_onnx(narrow, example, files[0])
    export_program(narrow, example, files[1])
    check(narrow, *files, (3, 8, 8))


@pytest.mark.slow
@rules(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settings((*BLOCKS, *MORE)), st.integers(0, 99))
def test_random_networks_cut_and_exported_give_equal_logits(tmp_path, chosen, seed):
    check_cut(tmp_path, Network(**chosen), seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", sorted(MORE))
def test_every_pattern_cut_and_exported_gives_equal_logits(tmp_path, block):
    check_cut(tmp_path, Network([[block, 8], [block, 12]]), seed=3)


def test_several_inputs_and_outputs(tmp_path):
    model, inputs = Two().eval(), (torch.rand(4, 3), torch.rand(4, 4))
    written = export_onnx(model, inputs, tmp_path / "two.onnx")
    export_program(model, inputs, tmp_path / "two.pt2")
    with torch.inference_mode():
        expected = model(*inputs)
        found = on_onnxruntime(written.path, *inputs)
        again = torch.export.load(tmp_path / "two.pt2").module()(*inputs)
        module = OnnxModule(written.path)(*inputs)
    for index, (name, value) in enumerate(expected.items()):
        torch.testing.assert_close(found[index], value)
        torch.testing.assert_close(module[index], value)
        torch.testing.assert_close(again[name], value)


def refusal(call, tmp_path):
    """Return the message of a refused export, which must leave the folder unchanged."""
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ExportError) as caught:
        call()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_an_operator_that_onnx_lacks_is_named_with_its_place(tmp_path, capfd):
    (tmp_path / "model.onnx").write_text("what was there before")
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Odd()))
    line = refusal(lambda: export_onnx(model, EXAMPLE, tmp_path / "model.onnx"), tmp_path)
    assert "linalg_svd" in line and " in 1.0 at " in line and "export=torch" in line
    assert f"{__file__}:" in line and "# the line to blame" in line
    assert capfd.readouterr() == ("", "")
    export_program(model, EXAMPLE, tmp_path / "model.pt2")


def test_a_decision_by_values_is_refused_with_its_line(tmp_path, capfd):
    for export in (export_onnx, export_program):
        line = refusal(lambda call=export: call(Branch(), EXAMPLE, tmp_path / "x"), tmp_path)
        assert f"{__file__}:" in line and "if x.sum() > 0" in line and "torch.where" in line
    assert capfd.readouterr() == ("", "")


def test_a_network_for_one_batch_size_is_refused(tmp_path):
    line = refusal(lambda: export_onnx(OneBatch(), EXAMPLE, tmp_path / "x"), tmp_path)
    assert "one batch size only" in line and "x.shape[0]" in line


class NotAlone(Small):
    """A network that fails on a batch of one, which tracing does not notice."""

    def forward(self, x):
        if not torch.compiler.is_compiling() and len(x) == 1:
            raise RuntimeError("one is\nnot enough")
        return super().forward(x)


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_a_network_that_fails_on_one_example_is_refused(tmp_path, export):
    line = refusal(lambda: export(NotAlone(), EXAMPLE, tmp_path / "x"), tmp_path)
    assert line == "the network does not run on a batch of 1: one is"


def test_an_input_of_the_wrong_shape_is_refused_with_its_reason(tmp_path):
    line = refusal(lambda: export_onnx(Small(), EXAMPLE[:, :2], tmp_path / "x"), tmp_path)
    assert "cannot follow forward" in line and f"{__file__}:" in line


def test_a_difference_that_is_no_number_is_refused(tmp_path):
    model = Small()
    nn.init.constant_(model.head.bias, float("nan"))
    assert "nan of the largest" in refusal(
        lambda: export_program(model, EXAMPLE, tmp_path / "x"), tmp_path
    )


@pytest.mark.parametrize("export", [export_onnx, export_program])
def test_files_that_compute_something_else_are_not_kept(tmp_path, export, monkeypatch):
    (tmp_path / "x").write_text("what was there before")
    monkeypatch.setattr(TracedProgram, "difference", lambda self, run: 2e-4)
    line = refusal(lambda: export(Small(), EXAMPLE, tmp_path / "x"), tmp_path)
    assert "2.0e-04" in line and "0.0001" in line
    export(Small(), EXAMPLE, tmp_path / "x", tolerance=1e-3)


def test_the_difference_is_the_largest_over_batches_and_outputs():
    traced = TracedProgram.of(Two(), (torch.rand(1, 3), torch.rand(1, 4)))

    def off(x, y):
        out = traced.model(x, y)
        shift = float(out["left"].abs().max()) / 8 if len(x) == 3 else 0.0
        return {"sum": out["sum"], "left": out["left"] + shift}

    assert traced.difference(off) == pytest.approx(1 / 8, rel=1e-4)
    with pytest.raises(ExportError, match=r"\(1, 3\) where the network gives \(1, 2\)"):
        traced.difference(lambda x, y: {"sum": torch.zeros(1, 3), "left": torch.zeros(1, 3)})


def test_weights_too_large_for_one_file_lie_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(export_files, "ONE_FILE", 100)
    written = export_onnx(Small(), EXAMPLE, tmp_path / "model.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert written.bytes >= 4 * sum(param.numel() for param in Small().parameters())
    with torch.inference_mode():
        x = torch.rand(4, 3, 6, 6)
        torch.testing.assert_close(on_onnxruntime(written.path, x)[0], Small().eval()(x))


def test_without_the_extra_onnx_is_refused_and_torch_is_not(tmp_path, monkeypatch):
    absent = {"onnx", "onnxscript"}
    monkeypatch.setattr(
        export_onnxruntime, "find_spec", lambda name: None if name in absent else name
    )
    for call in (lambda: export_onnx(Small(), EXAMPLE, tmp_path / "x"), Export, Int8):
        with pytest.raises(ConfigError, match=r"onnx, onnxscript.*prunekit\[export\]"):
            call()
    Export(formats=["torch"]).write(Small(), EXAMPLE, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_silence_ends():
    level = logging.root.manager.disable
    with pytest.raises(ValueError), silent():
        sys.stderr.write("nobody sees this")
        warnings.warn("nor this", stacklevel=1)
        raise ValueError
    assert logging.root.manager.disable == level
    with pytest.warns(UserWarning):
        warnings.warn("seen", stacklevel=1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((Export, {"formats": wrong}) for wrong in ([], "onnx", ["tflite"], None)),
        *((Export, {"opset": wrong}) for wrong in (9, "18")),
        *((Export, {"tolerance": wrong}) for wrong in (0, float("nan"))),
        *((Int8, {"calibration": wrong}) for wrong in (0, 1.5)),
        *((Int8, {"batch": 0}), (Int8, {"method": "best"}), (Int8, {"reduce_range": 7})),
    ],
)
def test_settings_are_checked(kind, settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"^{name}="):
        kind(**settings)


def test_a_file_that_is_no_network(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"text")
    with pytest.raises(ExportError, match="onnxruntime cannot run"):
        OnnxModule(tmp_path / "model.onnx")


def test_an_onnx_module_takes_what_the_network_takes(tmp_path):
    export_onnx(Small(), EXAMPLE, tmp_path / "model.onnx")
    module = OnnxModule(tmp_path / "model.onnx", threads=1)
    x = torch.rand(2, 3, 6, 6).to(memory_format=torch.channels_last)
    torch.testing.assert_close(module(x), Small().eval()(x).detach())
    with pytest.raises(ExportError, match="onnxruntime cannot run"):
        module(torch.rand(2, 4, 6, 6))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("int8")
    export_onnx(Wide(), EXAMPLE, place / "model.onnx")
    images = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    Int8(batch=32).write(place / "model.onnx", images.split(32), place / "int8.onnx")
    return place


class TestInt8:
    """Static quantisation."""

    def test_it_is_small_and_near(self, files):
        sizes = [(files / name).stat().st_size for name in ("model.onnx", "int8.onnx")]
        assert sizes[1] < 0.4 * sizes[0]
        assert {file.name for file in files.iterdir()} == {"model.onnx", "int8.onnx"}
        x = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(2))
        exact, found = (
            on_onnxruntime(files / name, x, as_written=True)[0]
            for name in ("model.onnx", "int8.onnx")
        )
        error = float((found - exact).norm() / (exact - exact.mean(0)).norm())
        assert 0 < error < 0.1

    @pytest.mark.parametrize(
        ("cpu", "reduced", "told"),
        [
            ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, False, True),
            ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": False}, True, False),
            ({"architecture": "x86_64", "avx512_vnni": False, "avx_vnni": True}, False, False),
            ({"architecture": "aarch64", "neon": True}, False, False),
        ],
    )
    def test_a_cpu_whose_sums_overflow_is_told(
        self, cpu, reduced, told, files, tmp_path, monkeypatch, caplog
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
        images = torch.randn(8, 3, 6, 6)
        made = Int8(reduce_range=reduced)
        made.write(files / "model.onnx", images.split(8), tmp_path / "int8.onnx")
        assert ("quantize.reduce_range=true" in caplog.text) == told

    def test_weights_are_rounded_with_a_scale_per_channel(self, files):
        proto = onnx.load(files / "int8.onnx")
        held = {
            t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
            for t in proto.graph.initializer
        }
        layers = [
            node
            for node in proto.graph.node
            if node.op_type == "DequantizeLinear"
            and held.get(node.input[0], EXAMPLE).dim() == 4
            and node.input[0] in held
        ]
        assert len(layers) == 2
        floats = {
            tuple(value.shape): value for value in weights(files / "model.onnx") if value.dim() == 4
        }
        for node in layers:
            whole, scale = held[node.input[0]], held[node.input[1]]
            assert whole.dtype == torch.int8 and scale.shape == (len(whole),)
            scale = scale[:, None, None, None]
            exact = floats[tuple(whole.shape)]
            assert float(((whole * scale - exact).abs() / scale).max()) <= 0.5 + 1e-3

    @pytest.mark.parametrize(
        "precision",
        [Int8(method="entropy"), Int8(method="percentile"), Int8(reduce_range=True)],
        ids=["entropy", "percentile", "reduce_range"],
    )
    def test_every_way_gives_a_file_that_is_near(self, files, tmp_path, precision, capfd):
        images = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        size = precision.write(files / "model.onnx", images.split(32), tmp_path / "int8.onnx")
        assert size == (tmp_path / "int8.onnx").stat().st_size
        assert capfd.readouterr() == ("", "")
        exact, found = (
            on_onnxruntime(file, images)[0]
            for file in (files / "model.onnx", tmp_path / "int8.onnx")
        )
        error = float((found - exact).norm() / (exact - exact.mean(0)).norm())
        assert 0 < error < 0.25
        if precision.reduce_range:
            narrow = [w for w in weights(tmp_path / "int8.onnx") if w.dtype == torch.int8]
            assert max(int(w.abs().max()) for w in narrow if w.dim() > 1) <= 64

    def test_what_cannot_be_quantised_is_one_line(self, files, tmp_path):
        with pytest.raises(ExportError, match="cannot quantise") as caught:
            Int8().write(files / "model.onnx", [torch.zeros(1, 5, 6, 6)], tmp_path / "int8.onnx")
        assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []

    def test_a_disk_that_refuses(self, files):
        with pytest.raises(ArtifactError, match="could not be written"):
            images = [torch.randn(4, 3, 6, 6)]
            Int8().write(files / "model.onnx", images, files / "model.onnx" / "int8.onnx")


class Wide(nn.Sequential):
    """A network whose file consists mostly of weights."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )


def weights(file):
    return [
        torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in onnx.load(file).graph.initializer
    ]
