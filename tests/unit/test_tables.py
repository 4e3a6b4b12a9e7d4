"""Tables and plots from small run directories written by hand."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
import torch

from prunekit.errors import ArtifactError
from prunekit.runs.plots import convergence, filters, tradeoff, widths
from prunekit.runs.tables import (
    collect,
    compare,
    comparison,
    main,
    markdown,
    show,
    summary,
    write_table,
)

DENSE = {"top1": 99.2, "top5": 100.0, "params": 431080, "macs": 2293000}
NARROW = {"top1": 99.05, "top5": 99.98, "params": 11173, "macs": 65026}


def report(place, stage, metrics, **settings):
    folder = place / stage
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    values = {
        "stage": stage,
        "settings": settings,
        "source": None,
        "metrics": metrics,
        "notes": [],
        "environment": {},
        "seconds": 1.5,
    }
    (folder / "report.json").write_text(json.dumps(values))


@pytest.fixture
def outputs(tmp_path):
    """Run a is finished, run b broke off while fine-tuning, run c has a damaged report."""
    model, dataset = {"name": "lenet5"}, {"name": "mnist"}
    report(tmp_path / "a", "pretrain", DENSE, model=model, dataset=dataset)
    report(tmp_path / "a", "sparsify", DENSE, dataset=dataset, regularizer={"name": "l21"})
    report(tmp_path / "a", "prune", {**NARROW, "top1": 98.0}, criterion={"_target_": "x.Stored"})
    report(tmp_path / "a", "finetune", NARROW)
    timed = {**NARROW, "cpu_ms": 4.0, "dense_cpu_ms": 22.0}
    report(tmp_path / "a", "measure", {**timed, **{f"dense_{k}": v for k, v in DENSE.items()}})
    report(tmp_path / "b", "prune", NARROW, criterion={"_target_": "prunekit.criteria.L1Norm"})
    (tmp_path / "b" / "finetune").mkdir()
    (tmp_path / "b" / "finetune" / "settings.json").write_text("{}")
    report(tmp_path / "sweep" / "lam=0.1", "pretrain", DENSE)
    (tmp_path / "sweep" / "lam=0.1" / "pretrain" / "report.json").write_text("{oops")
    return tmp_path


def test_compare_sets_every_network_beside_the_first():
    rows = [
        {"network": "dense", **DENSE, "cpu_ms": "22.0"},
        {"network": "pruned", **NARROW, "cpu_ms": "4.0", "top1": ""},
    ]
    columns, cells = compare(rows)
    assert columns == [
        *("network", "top-1 %", "top-5 %", "parameters", "MACs", "CPU ms"),
        *("params ratio", "MACs ratio", "CPU speed-up"),
    ]
    assert cells == [
        ["dense", "99.20", "100.00", "431,080", "2,293,000", "22", "1.0x", "1.0x", "1.0x"],
        ["pruned", "-", "99.98", "11,173", "65,026", "4", "38.6x", "35.3x", "5.5x"],
    ]


def test_comparison_prints_a_csv_file_in_full_width(tmp_path, capsys):
    file = tmp_path / "comparison.csv"
    pd.DataFrame([{"network": n, **m} for n, m in (("dense", DENSE), ("narrow", NARROW))]).to_csv(
        file, index=False
    )
    comparison(file)
    shown = capsys.readouterr().out
    assert "35.3x" in shown and "2,293,000" in shown and "CPU" not in shown
    with pytest.raises(ArtifactError, match="run the measure stage again"):
        comparison(tmp_path / "none.csv")
    file.write_text("network,top1\n")
    with pytest.raises(ArtifactError, match="has no rows"):
        comparison(file)


def test_collect_names_what_is_unfinished_or_damaged(outputs):
    frame = collect([outputs])
    rows = [tuple(row) for row in frame[["run", "stage", "status"]].to_numpy()]
    assert rows == [
        *(("a", stage, "finished") for stage in ("pretrain", "sparsify", "prune", "finetune")),
        ("a", "measure", "finished"),
        ("b", "prune", "finished"),
        ("b", "finetune", "unfinished"),
        ("sweep/lam=0.1", "pretrain", "damaged"),
    ]
    assert frame["params"].iloc[3] == 11173 and frame["seconds"].iloc[0] == 1.5


def test_collect_of_one_run_or_stage_and_no_run_twice(outputs):
    assert set(collect([outputs / "a"])["run"]) == {"a"}
    assert len(collect([outputs / "a" / "prune"])) == 1
    assert len(collect([outputs, outputs / "a"])) == 8


def test_nothing_found_is_an_error_that_names_the_paths(tmp_path):
    with pytest.raises(ArtifactError, match=r"no run found under .*nowhere"):
        collect([tmp_path, tmp_path / "nowhere"])


def test_summary_sets_the_last_stage_beside_dense(outputs):
    table = summary(collect([outputs])).set_index("run")
    row = table.loc["a"]
    assert (row["model"], row["dataset"], row["method"]) == ("lenet5", "mnist", "l21")
    assert row["last_stage"] == "measure" and row["problems"] == ""
    assert row["params_ratio"] == pytest.approx(431080 / 11173)
    assert row["macs_ratio"] == pytest.approx(2293000 / 65026)
    assert row["speedup"] == pytest.approx(5.5)
    assert row["top1_change"] == pytest.approx(-0.15)
    assert table.loc["b", "method"] == "L1Norm" and table.loc["b", "last_stage"] == "prune"
    assert table.loc["b", "problems"] == "finetune unfinished"
    assert math.isnan(table.loc["b", "params_ratio"])
    assert table.loc["sweep/lam=0.1", "problems"] == "pretrain damaged"


def test_summary_takes_dense_figures_from_pretrain_without_measure(outputs):
    frame = collect([outputs / "a"])
    row = summary(frame[frame["stage"] != "measure"]).iloc[0]
    assert row["last_stage"] == "finetune" and row["macs_ratio"] == pytest.approx(35.263, abs=1e-3)


def test_written_tables_come_back(outputs, capsys):
    table = summary(collect([outputs]))
    write_table(table, outputs / "table.csv")
    back = pd.read_csv(outputs / "table.csv")
    assert list(back.columns) == list(table.columns)
    assert back["macs_ratio"].iloc[0] == table["macs_ratio"].iloc[0]
    write_table(table, outputs / "table.md")
    lines = (outputs / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(table) and len({line.count("|") for line in lines}) == 1
    assert "35.3x" in lines[2] and lines[2].startswith("| a |")
    with pytest.raises(ArtifactError, match=r"must end in \.csv or \.md"):
        write_table(table, outputs / "table.xlsx")


def test_markdown_escapes_what_would_break_a_cell():
    assert markdown(pd.DataFrame({"run": ["a|b"]})) == "| run |\n| --- |\n| a\\|b |\n"


def test_report_command_prints_and_writes(outputs, capsys):
    main([str(outputs), "--out", str(outputs / "t.md"), "--plot", str(outputs / "t.png")])
    shown = capsys.readouterr().out
    assert "38.6x" in shown and "pretrain damaged" in shown
    assert (outputs / "t.md").is_file() and (outputs / "t.png").stat().st_size > 5000


def test_show_leaves_empty_columns_out(capsys):
    show(pd.DataFrame({"run": ["a"], "top1": [98.5], "params": [math.nan], "problems": [""]}))
    shown = capsys.readouterr().out
    assert "98.50" in shown and "parameters" not in shown and "problems" not in shown


def history(epochs):
    return pd.DataFrame(
        {
            "epoch": range(1, epochs + 1),
            "rows": [60 - 5 * i for i in range(epochs)],
            "train_loss": [2.0 / (i + 1) for i in range(epochs)],
            "val_top1": [90.0 + i for i in range(epochs)],
        }
    )


def test_plots_are_written(tmp_path):
    convergence({"SSR": history(5), "SSL": history(3)}, tmp_path / "c.png")
    widths({"conv1": 20, "conv2": 50}, {"conv1": 4, "conv2": 9}, tmp_path / "w.png")
    filters(torch.randn(20, 1, 5, 5), torch.randn(4, 1, 5, 5), tmp_path / "f.png")
    points = pd.DataFrame({"method": ["a", "b"], "macs_ratio": [2.0, 4.0], "top1": [99.0, 98.0]})
    tradeoff(points, tmp_path / "t.png")
    for name in "cwft":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_plots_without_data_say_what_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match="no run has both"):
        tradeoff(pd.DataFrame({"method": ["a"], "top1": [1.0]}), tmp_path / "t.png")
    with pytest.raises(ArtifactError, match="has none of the columns"):
        convergence({"SSR": pd.DataFrame({"epoch": [1]})}, tmp_path / "c.png")
