"""Latency, times of layers, memory and fvcore's count against numbers worked out by hand."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunekit.errors import ArtifactError, ConfigError, ExportError
from prunekit.export import OnnxModule
from prunekit.graph import ChannelGraph
from prunekit.measure import (
    Latency,
    LatencyTest,
    file_bytes,
    fvcore_macs,
    latency,
    layer_records,
    nonzero_params,
    peak_memory,
    sparsity,
)
from prunekit.methods.slimming import InsertChannelSelectors, slimming_flops, slimming_params
from prunekit.models import DenseNet, LeNet5
from prunekit.surgery.cut import cut


class Sleep(nn.Module):
    """A module that takes a fixed time and records the order of calls."""

    def __init__(self, seconds, calls, name):
        super().__init__()
        self.seconds, self.calls, self.name = seconds, calls, name

    def __deepcopy__(self, memo):
        return self  # the test wants to see the calls

    def forward(self, x):
        assert not self.training and torch.is_inference_mode_enabled()
        self.calls.append((self.name, tuple(x.shape), torch.get_num_threads(), float(x.sum())))
        time.sleep(self.seconds)
        return x


def test_counted_macs_leaves_normalisation_and_pooling_out():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 10),
    ).train()
    expected = 8 * 64 * 27 + 8 * 4 * 9 + 320
    assert fvcore_macs(model, torch.zeros(1, 3, 8, 8)) == expected
    assert model.training and model[1].num_batches_tracked == 0


def test_slimming_flops_by_hand():
    """Count modules only, biases once, poolings by windows, and leave the network unchanged."""
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d((2, 1)),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 2, 1, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 5),
    ).train()
    conv = 8 * 64 * (2 * 2 * 9 + 1)
    norm, relu, pools = 2 * 8 * 64, 8 * 64, 2 * (8 * 32) + 4 * (8 * 8)
    assert slimming_flops(model, torch.zeros(1, 4, 8, 8)) == (
        conv + norm + relu + pools + 2 * 2 * 8 * 8 + 2 * 8 + (2 * 2 + 1) * 5
    )
    assert model.training and model[1].num_batches_tracked == 0
    assert not any(module._forward_hooks for module in model.modules())


def test_slimming_counts_of_a_narrow_network_keep_the_norms_wide():
    """Count as the released code does: norms of full width, a mask, then narrow layers."""
    torch.manual_seed(0)
    x = torch.zeros(2, 3, 16, 16)
    model = DenseNet(layers=1, growth=2, stem=4)
    scales = 4 + 6 + 6 + 8 + 8 + 10
    published = sum(param.numel() for param in model.parameters()) + scales
    flops = slimming_flops(model, x[:1])
    assert slimming_params(model, x) == published
    InsertChannelSelectors.of(model, x).apply(model)
    assert (slimming_flops(model, x[:1]), slimming_params(model, x)) == (flops, published)

    graph = ChannelGraph.trace(model, x)
    keep = {group.name: torch.ones(len(group.units), dtype=torch.bool) for group in graph.groups}
    keep["block2.0.bn.select"][[1, 4, 5]] = False  # of 6 channels of 8 x 8, read by a 3 x 3
    narrow = cut(model, graph, keep, x, absorb=False).model
    assert slimming_params(narrow, x) == published - 3 * 2 * 9
    gone = 3 * 64 * (2 * 2 * 9 + 1)  # of the convolution and of the ReLU
    assert slimming_flops(narrow, x[:1]) == flops - gone


def test_counting_is_silent(capfd, caplog):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Hardswish(), nn.Softplus())
    assert fvcore_macs(model, torch.zeros(1, 1, 4, 4)) == 32
    assert capfd.readouterr() == ("", "") and not caplog.records


def test_latency_is_taken_in_turns_on_one_batch():
    calls = []
    models = {"a": Sleep(0.002, calls, "a"), "b": Sleep(0.004, calls, "b")}
    before = torch.get_num_threads()
    test = LatencyTest(threads=before + 1, batch=3, runs=6, warmup=2)
    found = test.run(models, torch.zeros(1, 2, 4, 4))
    assert torch.get_num_threads() == before
    assert [name for name, *_ in calls] == ["a", "b"] * 8
    assert {call[1:3] for call in calls} == {((3, 2, 4, 4), before + 1)}
    assert len({call[3] for call in calls}) == 1
    assert 2 <= found["a"].q1 <= found["a"].median_ms <= found["a"].q3
    assert found["b"].median_ms >= 4 and found["b"].runs == 6


def test_latency_stops_when_the_time_is_up_but_not_before_five_rounds():
    calls = []
    test = LatencyTest(runs=1000, warmup=1000, seconds=0.001)
    found = test.run({"a": Sleep(0.002, calls, "a")}, torch.zeros(1, 1))
    assert found["a"].runs == 5 and len(calls) == 6


def test_latency_restores_the_threads_when_a_model_fails():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        LatencyTest(threads=before + 1).run({"a": nn.Linear(3, 1)}, torch.zeros(1, 2))
    assert torch.get_num_threads() == before


def test_each_engine_times_in_turns_on_its_own_copies(monkeypatch):
    pytest.importorskip("onnxruntime", reason="needs the extra: pip install prunekit[export]")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install prunekit[export]")
    models = {"small": nn.Linear(4, 4).train(), "large": Deep()}
    arguments, before = [], torch.get_num_threads()
    monkeypatch.setattr(latency, "OnnxModule", lambda *a: arguments.append(a[1:]) or OnnxModule(*a))
    test = LatencyTest(runs=9, warmup=2, batch=64, threads=before + 1)
    for engine in ("eager", "onnxruntime"):
        found = test.run(models, torch.zeros(1, 4), engine=engine)
        assert found["large"].median_ms > found["small"].median_ms > 0
    assert arguments == [(before + 1,)] * 2  # the sessions have the threads of the test
    assert models["small"].training and torch.get_num_threads() == before


class Deep(nn.Sequential):
    """A network that takes far longer than a linear layer, on any engine."""

    def __init__(self):
        layers = [nn.Linear(512, 512) for _ in range(8)]
        super().__init__(nn.Linear(4, 512), *layers)


@pytest.mark.slow
def test_torch_compile_is_timed_without_its_compilation():
    found = LatencyTest(runs=5, warmup=1).run(
        {"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "b": nn.Linear(4, 4)},
        torch.zeros(1, 4),
        engine="compile",
    )
    assert all(0 < latency.q3 < 100 for latency in found.values())  # compiling takes seconds


def test_an_engine_that_fails_says_why(monkeypatch):
    def broken(model, **_):
        def run(x):
            raise RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: no compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ExportError, match=r"finds no C\+\+ compiler"):
        LatencyTest(runs=5).run({"a": nn.Linear(1, 1)}, torch.zeros(1, 1), engine="compile")
    with pytest.raises(ConfigError, match="engine='tvm' is unknown"):
        LatencyTest(runs=5).run({"a": nn.Linear(1, 1)}, torch.zeros(1, 1), engine="tvm")


def test_anything_that_takes_the_batch_can_race():
    seen = []
    test = LatencyTest(batch=3, runs=5, warmup=1)
    x = test.inputs(torch.zeros(1, 2))
    found = test.time_callables(
        {"a": lambda x: seen.append(("a", x)), "b": lambda x: seen.append(x)}, x
    )
    assert list(found) == ["a", "b"] and len(seen) == 12
    assert x.shape == (3, 2) and torch.equal(x, test.inputs(torch.zeros(7, 2)))


@pytest.mark.parametrize("before", [False, True])
def test_denormal_numbers_are_zero_while_timing_and_then_as_before(before):
    tiny = torch.tensor(1e-20)
    products = []
    torch.set_flush_denormal(before)
    try:
        LatencyTest(runs=5).time_callables(
            {"a": lambda x: products.append(float(tiny * tiny))}, tiny
        )
        assert set(products) == {0.0}
        assert (float(tiny * tiny) == 0.0) == before
    finally:
        torch.set_flush_denormal(False)


def test_the_gpu_clock_waits_for_what_came_before(monkeypatch):
    """Check that events are on the batch's device and the first one follows a synchronisation."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def elapsed_time(self, other):
            return 2.5

    class Device:
        def __init__(self, device):
            log.append(device)

        def __enter__(self):
            log.append("enter")

        def __exit__(self, *_):
            log.append("exit")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    batch = SimpleNamespace(device="cuda:1")
    assert latency._gpu_ms(lambda x: log.append("pass"), batch) == 2.5
    assert log == ["cuda:1", "enter", "wait", "record", "pass", "record", "wait", "exit"]


def test_latency_leaves_the_models_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    LatencyTest(runs=5, warmup=1, batch=4).run({"a": model}, torch.zeros(1, 2))
    assert model.training and model[1].num_batches_tracked == 0


def test_quartiles():
    assert Latency.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Latency(3.0, 2.0, 4.0, 5, 1.0)
    slowed = Latency.of([2.0, 2.0, 20.0, 20.0, 20.0])
    assert slowed.ratio_to(Latency.of([4.0, 4.0, 40.0, 4.0, 40.0])) == 0.5
    assert Latency(3.0, 2.0, 4.0, 5, 1.0).ratio_to(slowed) == 3.0 / 20.0


def test_load_that_slows_both_networks_of_a_round_does_not_scatter_their_ratio():
    calm, loaded = Latency.of([2.0, 2.0, 2.0, 2.0, 2.0]), Latency.of([4.0, 40.0, 4.0, 16.0, 4.0])
    half = Latency.of([time / 2 for time in loaded.times])
    assert half.scatter(loaded) == 0 and half.scatter(half) == 0
    assert loaded.scatter(calm) == pytest.approx((8 - 2) / 2)


@pytest.mark.parametrize(
    "settings",
    [
        *({"threads": 0}, {"batch": 0}, {"runs": 4}, {"warmup": -1}, {"seconds": 0}),
        *({"engines": wrong} for wrong in ([], "eager", ["eager", "tvm"], None, [3])),
    ],
)
def test_latency_settings_are_checked(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"^{name}="):
        LatencyTest(**settings)


@pytest.mark.parametrize(
    ("act", "maps"),
    [
        (nn.ReLU(inplace=True), 1 + 4 + 2),  # input, conv1 and conv2
        (nn.ReLU(), 1 + 4 + 4),  # input, conv1 and its ReLU: conv1 is gone when conv2 starts
    ],
)
def test_peak_memory_of_two_layers_by_hand(act, maps):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), act, nn.Conv2d(4, 2, 3, padding=1))
    one_map = 8 * 8 * 4
    for batch in (1, 5):
        assert peak_memory(model, torch.zeros(batch, 1, 8, 8)) == batch * maps * one_map


class Skip(nn.Module):
    """A residual sum, during whose branch the skipped tensor stays in memory."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 1) for _ in range(2))

    def forward(self, x):
        return x.view(-1, 4, 6, 6) + self.second(self.first(x))


def test_peak_memory_counts_what_a_skip_keeps_and_no_view():
    # input, second and the sum, or input, first and second: three maps; a view takes nothing
    assert peak_memory(Skip(), torch.zeros(2, 4, 6, 6)) == 3 * 2 * 4 * 36 * 4


def test_peak_memory_repeats_exactly():
    example = torch.zeros(2, 4, 6, 6)
    assert len({peak_memory(Skip(), example) for _ in range(3)}) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_and_latency_on_a_gpu():
    example = torch.zeros(2, 4, 64, 64, device="cuda")
    assert peak_memory(Skip(), example) >= 3 * example.numel() * 4
    found = LatencyTest(runs=5).run({"a": Skip(), "b": Skip()}, torch.zeros(1, 4, 6, 6), "cuda")
    assert all(latency.median_ms > 0 for latency in found.values())


def test_sparsity_counts_exact_zeros():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0, 1e-30], [0.0, -0.0, 2.0]]))
        model.bias.copy_(torch.tensor([0.0, 1.0]))
    assert nonzero_params(model) == 4
    assert sparsity(model) == 0.5
    assert sparsity(nn.ReLU()) == 0.0


def test_file_bytes(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"12345")
    assert file_bytes(tmp_path / "model.pt") == 5
    with pytest.raises(ArtifactError, match="does not exist"):
        file_bytes(tmp_path / "other.pt")


class Sleeping(nn.Identity):
    def forward(self, x):
        time.sleep(0.004)
        return x


def layer_times(models, example):
    records = layer_records(models, example, LatencyTest(batch=2, runs=5, warmup=1))
    return {(record["network"], record["layer"]): record for record in records}


def test_counts_are_those_of_hand_and_both_networks_are_there():
    models = {"dense": LeNet5(), "narrow": LeNet5(widths=(4, 6, 12))}
    records = layer_times(models, torch.zeros(1, 1, 28, 28))
    assert records["dense", "conv1"]["macs"] == 25 * 20 * 24 * 24
    assert records["narrow", "conv2"]["macs"] == 25 * 4 * 6 * 8 * 8
    assert records["narrow", "fc1"]["params"] == (16 * 6 + 1) * 12
    assert all(record["cpu_ms"] >= 0 for record in records.values())
    assert "macs" not in records["dense", "relu1"]  # a module without channels is timed alone
    assert not any(module._forward_hooks for module in models["dense"].modules())


def test_time_lands_where_it_is_spent_and_calls_add_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.nap, self.act = nn.Conv2d(1, 2, 3), Sleeping(), nn.ReLU()

        def forward(self, x):
            return self.nap(self.act(self.nap(self.conv(x)))).mean((2, 3))

    records = layer_times({"dense": Net().eval()}, torch.zeros(1, 1, 8, 8))
    assert set(records) == {("dense", "conv"), ("dense", "nap"), ("dense", "act")}
    assert records["dense", "nap"]["cpu_ms"] >= 8  # twice a pass
    assert records["dense", "nap"]["cpu_ms"] > records["dense", "act"]["cpu_ms"]


def test_parts_of_a_layer_are_not_counted_twice():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    torch.nn.utils.parametrizations.weight_norm(model[0])
    records = layer_times({"dense": model.eval()}, torch.zeros(1, 1, 8, 8))
    assert set(records) == {("dense", "0"), ("dense", "1")}
    assert records["dense", "0"]["macs"] == pytest.approx(9 * 3 * 36)
