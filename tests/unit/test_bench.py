"""The suites of `make bench`: their rows, their bounds, and what is written."""

from __future__ import annotations

import csv
import sys

import pytest

from scripts.bench import __main__ as bench
from scripts.bench import report
from scripts.bench.foreign import BUILD, NETWORKS
from scripts.bench.ratios import below, row
from scripts.bench.subjects import TIMM


def called(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    return bench.main()


def test_a_suite_writes_its_rows_and_misses_no_bound(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RUNS", 3)
    monkeypatch.setattr(report, "PAGE", 2)
    file = tmp_path / "rows.csv"
    assert called(monkeypatch, "report", "--rounds", "1", "--csv", str(file)) == 0
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [line["what"] for line in rows] == [
        "3 runs of 6 reports into a table, seconds",
        "page of 2 runs, megabytes",
    ]
    assert {line["holds"] for line in rows} == {"yes"} and 0 < float(rows[1]["ratio"]) < 5
    assert "every bound holds" in capsys.readouterr().out


def test_a_missed_bound_is_named(monkeypatch, capsys):
    lines = [row("free", 2.0), below("fast", 2.0, 1.0)]
    monkeypatch.setattr(bench, "SUITES", {"lasso": lambda rounds: lines})
    assert called(monkeypatch) == 1
    assert "missed: fast" in capsys.readouterr().out


def test_a_suite_that_there_is_not(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        called(monkeypatch, "lassos")
    assert "no such suites: lassos; there are training" in capsys.readouterr().err


def test_networks_of_the_coverage_tables_are_listed():
    assert len(TIMM) == len({*TIMM}) == 43
    assert len(NETWORKS) == 41 and {one.library for one in NETWORKS.values()} == {*BUILD}
