"""The networks whose latency is compared cost as much, and what was timed is kept."""

from __future__ import annotations

import csv
import sys

import pytest
import torch
from torch import nn

from prunekit.measure import fvcore_macs
from scripts.bench import decomposed_latency as latency


@pytest.mark.parametrize("keep", [0.3, 0.5])
def test_pruned_and_decomposed_networks_cost_the_same(keep):
    subject = latency.SUBJECTS["resnet20"]
    networks = latency.variants(subject, keep)
    macs = {name: fvcore_macs(net, subject.example) for name, net in networks.items()}
    for name in ("pruned", "decomposed"):
        assert keep - 0.02 < macs[name] / macs["dense"] <= keep
    pruned, decomposed = (shapes(networks[name]) for name in ("pruned", "decomposed"))
    assert len(pruned) == len(shapes(networks["dense"])) == 19
    assert len(decomposed) == 37  # one stays, eighteen are two
    assert [shape[2] for shape in decomposed] == [3, *(3, 1) * 18]
    assert decomposed[-1][:2] == (64, decomposed[-2][0])  # outputs stay, inner channels go
    assert all(net(torch.rand(2, 3, 32, 32)).shape == (2, 10) for net in networks.values())


def shapes(model):
    return [tuple(m.weight.shape[:3]) for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_what_stands_in_the_table_is_not_timed_again(tmp_path, monkeypatch):
    line = ["x", "--networks", "resnet20", "--engines", "eager", "--devices", "cpu"]
    monkeypatch.setattr(
        sys, "argv", [*line, "--rounds", "5", "--warmup", "0", "--out", str(tmp_path)]
    )
    assert latency.main() == 0
    with open(tmp_path / "decomposed_latency.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["batch"] for row in rows] == ["1"] * 3 + ["64"] * 3
    assert [row["variant"] for row in rows] == ["dense", "pruned", "decomposed"] * 2
    assert rows[0]["speed-up"] == "1.000" and float(rows[1]["ms"]) > 0
    monkeypatch.setattr(latency, "timed", None)
    before = (tmp_path / "decomposed_latency.csv").read_text()
    assert latency.main() == 0
    assert (tmp_path / "decomposed_latency.csv").read_text() == before
    assert (
        "| resnet20 | 32 | 64 | cpu | eager |" in (tmp_path / "decomposed_latency.md").read_text()
    )
