"""Multiply-adds and milliseconds layer by layer."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from prunekit.measure import LatencyTest, layer_records
from prunekit.models import LeNet5


class Sleeping(nn.Identity):
    def forward(self, x):
        time.sleep(0.004)
        return x


def timed(models, example):
    rows = layer_records(models, example, LatencyTest(batch=2, runs=5, warmup=1))
    return {(row["network"], row["layer"]): row for row in rows}


def test_counts_are_those_of_hand_and_both_networks_are_there():
    models = {"dense": LeNet5(), "narrow": LeNet5(widths=(4, 6, 12))}
    rows = timed(models, torch.zeros(1, 1, 28, 28))
    assert rows["dense", "conv1"]["macs"] == 25 * 20 * 24 * 24
    assert rows["narrow", "conv2"]["macs"] == 25 * 4 * 6 * 8 * 8
    assert rows["narrow", "fc1"]["params"] == (16 * 6 + 1) * 12
    assert all(row["cpu_ms"] >= 0 for row in rows.values())
    assert "macs" not in rows["dense", "relu1"]  # a module without channels is timed alone
    assert not any(module._forward_hooks for module in models["dense"].modules())


def test_time_lands_where_it_is_spent_and_calls_add_up():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.nap, self.act = nn.Conv2d(1, 2, 3), Sleeping(), nn.ReLU()

        def forward(self, x):
            return self.nap(self.act(self.nap(self.conv(x)))).mean((2, 3))

    rows = timed({"dense": Net().eval()}, torch.zeros(1, 1, 8, 8))
    assert set(rows) == {("dense", "conv"), ("dense", "nap"), ("dense", "act")}
    assert rows["dense", "nap"]["cpu_ms"] >= 8  # twice a pass
    assert rows["dense", "nap"]["cpu_ms"] > rows["dense", "act"]["cpu_ms"]


def test_parts_of_a_layer_are_not_counted_twice():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    torch.nn.utils.parametrizations.weight_norm(model[0])
    rows = timed({"dense": model.eval()}, torch.zeros(1, 1, 8, 8))
    assert set(rows) == {("dense", "0"), ("dense", "1")}
    assert rows["dense", "0"]["macs"] == pytest.approx(9 * 3 * 36)
