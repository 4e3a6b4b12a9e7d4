"""prunekit sensitivity: a stage of its own, and selection=sensitivity behind it."""

from __future__ import annotations

import csv
import json

import pytest

QUICK = ("criterion=l1_norm", "sensitivity.shares=[0.3,0.6]", "sensitivity.timing=null")
CURVES = ("source=outputs/whole/pretrain", *QUICK)


def report(stage):
    return json.loads((stage / "report.json").read_text())


def table(stage):
    with open(stage / "sensitivity.csv", newline="") as file:
        return [*csv.DictReader(file)]


def test_of_a_finished_run_with_milliseconds(go, finished):
    """Behind the same run's sparsify, whose stored scores say what goes, as prune would."""
    place = finished / "outputs/whole/sensitivity"
    quick = ("sensitivity.shares=[0.5]", "sensitivity.images=64", "latency.batch=8")
    out = go("sensitivity", "name=whole", *quick)
    assert out.startswith("sensitivity top-1") and "(validation)" in out
    found = report(place)
    assert found["source"].startswith("sparsify/") and found["notes"] == []
    assert found["metrics"]["images"] == 64 and "top1" not in found["metrics"]
    rows = table(place)
    assert [row["share"] for row in rows] == ["0.0", "0.5"] * 3
    dense = {key: float(rows[0][key]) for key in ("macs", "ms")}
    assert dense["macs"] == found["metrics"]["macs"] and dense["ms"] > 0
    for whole, half in zip(rows[::2], rows[1::2], strict=True):
        assert float(whole["ms"]) == dense["ms"] >= float(half["ms"])
        assert int(half["removed"]) * 2 == int(half["units"])
    assert "finished before" in go("sensitivity", "name=whole", *quick)
    assert "finished before" in go("finetune", "name=whole")  # it starts from no other stage now


def test_ratios_in_one_pipeline_and_again_from_another_run(go, finished):
    budget = ("selection=sensitivity", "selection.budget.keep=0.4")
    out = go("run", "pipeline=[prune,sensitivity]", "name=one", *CURVES, *budget)
    assert [line.split()[0] for line in out.splitlines() if "->" in line] == [
        *("sensitivity", "prune")
    ]
    assert "by its curve every group alone costs at most" in out or "no group loses" in out
    first = report(finished / "outputs/one/prune")
    assert first["metrics"]["reached/MACs"] <= 0.4 and first["source"].startswith("pretrain/")
    assert first["settings"]["curves"].startswith("sensitivity/sensitivity.csv (")
    go("prune", "name=two", *CURVES, *budget, "selection.path=outputs/one")
    again = report(finished / "outputs/two/prune")["metrics"]
    assert {k: v for k, v in again.items() if "kept/" in k} == {
        k: v for k, v in first["metrics"].items() if "kept/" in k
    }
    go("prune", "name=three", *CURVES, *budget[:1], "selection.path=outputs/one")
    other = ("selection@selection.budget=params", "selection.budget.keep=0.3")
    go("prune", "name=four", *CURVES, *budget[:1], *other, "selection.path=outputs/one")
    assert report(finished / "outputs/four/prune")["metrics"]["reached/parameters"] <= 0.3
    line = go("prune", "name=four", *CURVES, *budget, "selection.path=outputs/one", code=1)
    assert "made with other settings" in line


def test_other_curves_make_another_prune(go, finished):
    asked = ("name=five", *CURVES, "selection=sensitivity")
    go("run", "pipeline=[sensitivity,prune]", *asked)
    file = finished / "outputs/five/sensitivity/sensitivity.csv"
    file.write_text(file.read_text().replace(",0.6,", ",0.60,"))
    assert "curves was sensitivity/sensitivity.csv" in go("prune", *asked, code=1)


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("sensitivity", ("sensitivity.shares=[1.5]",), "sensitivity.shares=1.5 must be below 1"),
        ("sensitivity", ("dataset.val=0",), "judged on validation images and this dataset has"),
        ("sensitivity", ("sensitivity.groups=[conv9]",), "'conv9' matches no layer; did you"),
        ("prune", ("selection=sensitivity",), "run prunekit sensitivity first"),
        ("prune", ("selection=sensitivity", "selection.path=absent"), "absent has no sensitivity"),
    ],
)
def test_bad_input_is_one_line(go, finished, command, overrides, words):
    line = go(command, "name=bad", *CURVES, *overrides, code=1)
    assert line.count("\n") == 1 and words in line
    assert not (finished / "outputs/bad" / command / "report.json").exists()


def test_a_network_without_a_run_before_it(cli, tmp_path):
    """Random weights, and no scores: the L1 norm decides."""
    found = cli("sensitivity", "name=new", "sensitivity.shares=[0.5]", "sensitivity.timing=null")
    assert found.code == 0, found.err
    assert "no scores are stored for this network: the lowest L1 norms go first" in found.out
    behind = cli("prune", "name=new", *QUICK[:1], "selection=sensitivity")
    assert behind.code == 0, behind.err
    assert "prune" in behind.out and (tmp_path / "outputs/new/prune/model.pt").is_file()
