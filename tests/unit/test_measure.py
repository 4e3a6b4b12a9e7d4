"""Latency, memory and fvcore's count against numbers worked out by hand."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from prunekit.errors import ArtifactError, ConfigError
from prunekit.measure import (
    Latency,
    LatencyTest,
    counted_macs,
    file_bytes,
    nonzero_params,
    peak_memory,
    sparsity,
)


class Sleep(nn.Module):
    """Takes a known time and remembers in which order it was called."""

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
    assert counted_macs(model, torch.zeros(1, 3, 8, 8)) == expected
    assert model.training and model[1].num_batches_tracked == 0


def test_counting_is_silent(capfd, caplog):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Hardswish(), nn.Softplus())
    assert counted_macs(model, torch.zeros(1, 1, 4, 4)) == 32
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


def test_latency_leaves_the_models_as_they_are():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    LatencyTest(runs=5, warmup=1, batch=4).run({"a": model}, torch.zeros(1, 2))
    assert model.training and model[1].num_batches_tracked == 0


def test_quartiles():
    assert Latency.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Latency(3.0, 2.0, 4.0, 5)


@pytest.mark.parametrize(
    "settings", [{"threads": 0}, {"batch": 0}, {"runs": 4}, {"warmup": -1}, {"seconds": 0}]
)
def test_latency_settings_are_checked(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"latency\.{name}="):
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
    """A residual sum: the skipped tensor lives on beside the branch."""

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
