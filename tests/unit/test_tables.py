"""Tables and plots from small run directories written by hand."""

from __future__ import annotations

import hashlib
import json
import math

import pandas as pd
import pytest
import torch

from prunekit.errors import ArtifactError
from prunekit.reporting.collect import collect
from prunekit.reporting.columns import compare
from prunekit.reporting.command import main
from prunekit.reporting.formats import markdown
from prunekit.reporting.plots import convergence, filters, tradeoff, widths
from prunekit.reporting.tables import comparison, show, summary, write_table

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


def lp(lam, p, seed, ratio, name="lp"):
    penalty = {"_target_": "prunekit.penalties.Lp", "lam": lam, "p": p}
    return {
        "seed": seed,
        "regularizer": {"name": name, "lam": lam, "penalty": penalty},
        "solver": {"_target_": "prunekit.solvers.Subgradient"},
        "selection": {"_target_": "prunekit.methods.slimming.Slimming", "ratio": ratio},
    }


def sparse_run(place, settings, pruned, tuned, params):
    """A run as a sweep leaves it: every stage sees its own part of the settings."""
    keep = {key: value for key, value in settings.items() if key != "selection"}
    report(place, "pretrain", {"top1": 90.0, "params": 200, "macs": 4000}, seed=settings["seed"])
    small = {"top1": 89.0, "params": 200, "macs": 4000, "below/1e-02": 0.75, "below/1e-06": 0.5}
    report(place, "sparsify", small, **keep)
    narrow = {"top1": pruned, "params": params, "macs": 10 * params}
    prune = {"seed": settings["seed"], "selection": settings["selection"]}
    report(place, "prune", narrow, **prune, criterion={"name": "bn_scale"})
    report(place, "finetune", {**narrow, "top1": tuned}, seed=settings["seed"])


def test_summary_tells_strength_share_and_both_accuracies(tmp_path):
    sparse_run(tmp_path / "a", lp(0.001, 0.5, 3, 0.4), 40.0, 88.5, 50)
    row = summary(collect([tmp_path])).iloc[0]
    assert (row["method"], row["lam"], row["ratio"], row["seed"]) == ("lp", 0.001, 0.4, 3)
    assert (row["pruned_top1"], row["tuned_top1"], row["dense_top1"]) == (40.0, 88.5, 90.0)
    assert (row["params_share"], row["macs_share"]) == (0.25, 0.125)
    assert (row["below/1e-02"], row["below/1e-06"]) == (0.75, 0.5)


def test_methods_are_told_apart_by_what_differs(tmp_path):
    sparse_run(tmp_path / "a", lp(0.001, 0.5, 0, 0.4), 40.0, 88.5, 50)
    sparse_run(tmp_path / "b", lp(0.001, 0.75, 0, 0.4), 41.0, 88.0, 50)
    sparse_run(tmp_path / "c", lp(0.002, 0.75, 0, 0.4), 41.0, 88.0, 50)
    tl1 = lp(0.001, 1.0, 0, 0.4, name="tl1")
    sparse_run(tmp_path / "d", tl1, 41.0, 88.0, 50)
    sparse_run(tmp_path / "e", tl1 | {"solver": {"_target_": "x.Proximal"}}, 41.0, 88.0, 50)
    methods = summary(collect([tmp_path])).set_index("run")["method"].to_dict()
    assert methods == {
        **{"a": "lp p=0.5", "b": "lp p=0.75", "c": "lp p=0.75"},
        **{"d": "tl1 Subgradient", "e": "tl1 Proximal"},
    }


def test_where_mcp_turns_flat_is_its_trait_whatever_the_strength(tmp_path):
    for run, lam, gamma in (("a", 0.001, 1000.0), ("b", 0.002, 500.0), ("c", 0.001, 500.0)):
        penalty = {"_target_": "prunekit.penalties.MCP", "lam": lam, "gamma": gamma}
        settings = {"regularizer": {"name": "mcp", "lam": lam, "penalty": penalty}}
        report(tmp_path / run, "sparsify", NARROW, **settings, solver={"_target_": "x.Proximal"})
    table = summary(collect([tmp_path]))
    assert list(table["method"]) == ["mcp flat=1", "mcp flat=1", "mcp flat=0.5"]


def test_a_setting_is_the_same_for_runs_that_differ_in_the_seed_only(tmp_path):
    sparse_run(tmp_path / "a", lp(0.001, 0.5, 0, 0.4), 40.0, 88.5, 50)
    sparse_run(tmp_path / "b", lp(0.001, 0.5, 1, 0.4), 41.0, 88.0, 51)
    sparse_run(tmp_path / "c", lp(0.001, 0.5, 0, 0.6), 30.0, 87.0, 30)
    a, b, c = summary(collect([tmp_path]))["setting"]
    assert a == b != c


def test_a_run_takes_its_penalty_from_the_run_it_was_pruned_from(tmp_path):
    for name, p in (("half", 0.5), ("more", 0.75)):
        settings = lp(0.001, p, 0, 0.4)
        report(tmp_path / name, "sparsify", {"params": 200, "macs": 4000}, **settings)
        (tmp_path / name / "sparsify" / "model.pt").write_text(name)
        report(tmp_path / name / "pruned", "prune", NARROW, criterion={"name": "bn_scale"})
        file = tmp_path / name / "pruned" / "prune" / "report.json"
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        source = {"source": f"sparsify/model.pt ({digest})"}
        file.write_text(json.dumps(json.loads(file.read_text()) | source))
    table = summary(collect([tmp_path])).set_index("run")
    assert table.loc["half/pruned", "method"] == "lp p=0.5"
    assert table.loc["more/pruned", "method"] == "lp p=0.75"
    assert table.loc["half/pruned", "setting"] != table.loc["more/pruned", "setting"]
    alone = summary(collect([tmp_path / "half" / "pruned", tmp_path / "more" / "pruned"]))
    assert list(alone["method"]) == ["bn_scale", "bn_scale"]
    assert alone["run"].nunique() == 2  # both are called "pruned" from there


def test_sizes_of_the_dense_network_are_known_from_sparsifying(tmp_path):
    sparse_run(tmp_path / "a", lp(0.001, 0.5, 0, 0.4), 40.0, 88.5, 50)
    frame = collect([tmp_path])
    row = summary(frame[frame["stage"] != "pretrain"]).iloc[0]
    assert row["params_share"] == 0.25 and math.isnan(row["dense_top1"] or math.nan)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--plot", "curve.jpg"], r"curve\.jpg must end in \.png, \.pdf or \.svg"),
        (["--plot", "none/curve.png"], "there is no folder none; create it"),
        (["--out", "table.txt"], r"must end in \.csv, \.md or \.tex"),
    ],
)
def test_report_refuses_places_before_it_reads_anything(line, message, outputs, capsys):
    with pytest.raises(ArtifactError, match=message):
        main([str(outputs), *line])
    assert capsys.readouterr().out == ""


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
    with pytest.raises(ArtifactError, match=r"must end in \.csv, \.md or \.tex"):
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


def test_show_leaves_out_settings_in_which_no_two_runs_differ(capsys):
    show(pd.DataFrame({"run": ["a", "b"], "lam": [0.5, 0.25], "seed": [7, 7], "keep": [0.5, None]}))
    shown = capsys.readouterr().out
    assert "0.25" in shown and "seed" not in shown and "keep" not in shown


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
