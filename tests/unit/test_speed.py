"""The script that times pruned networks: what it cuts, what it writes, what it does not repeat."""

from __future__ import annotations

import csv
import sys

import pytest

from scripts.bench import speed as script

SMALL = ("--networks", "resnet18", "--size", "32", "--batch", "1", "--rounds", "5")


@pytest.fixture
def speed(monkeypatch, tmp_path):
    """Call the script with arguments; returns the rows of its file."""

    def run(*arguments):
        out = tmp_path / "speed.csv"
        monkeypatch.setattr(sys, "argv", ["speed.py", *SMALL, *arguments, "--out", str(out)])
        assert script.main() == 0
        with open(out, newline="") as file:
            return list(csv.DictReader(file))

    return run


def test_three_variants_are_timed_and_not_again(speed, capfd):
    rows = speed("--engines", "eager")
    assert [row["variant"] for row in rows] == ["dense", "pruned", "multiples of 8"]
    shares = [float(row["macs_share"]) for row in rows]
    assert shares[0] == 1 and 0.49 <= shares[1] <= 0.5 and 0.3 <= shares[2] <= 0.5
    for row in rows:
        expected = float(rows[0]["ms"]) / float(row["ms"])
        assert float(row["speedup"]) == pytest.approx(expected, rel=0.05)
        assert float(row["q1"]) <= float(row["ms"]) <= float(row["q3"])
    assert speed("--engines", "eager") == rows
    assert "resnet18 on eager" in capfd.readouterr().out


def test_a_network_or_engine_that_does_not_exist(speed, capfd):
    for wrong in (("--networks", "resnet81"), ("--engines", "tvm")):
        with pytest.raises(SystemExit):
            speed(*wrong)
    err = capfd.readouterr().err
    assert "did you mean resnet" in err and "accepted: eager, compile" in err
