"""Runs over several directories as one comparison: ancestors, and means over seeds."""

import json

import pytest

from prunekit.reporting.collect import collect
from prunekit.reporting.command import main
from prunekit.reporting.pareto import setting_means
from prunekit.reporting.seed_stats import SeedAverages, shared_name, spread
from prunekit.reporting.tables import summary
from prunekit.runs.rundir import identity_of
from prunekit.torch_io import write_torch

DENSE = {"params": 1000, "macs": 9000}
NARROW = {"params": 100, "macs": 600}


def stage(place, metrics, source=None, **settings):
    place.mkdir(parents=True)
    values = {"stage": place.name, "settings": {"dataset": {"name": "d"}, **settings}}
    values |= {"source": source and identity_of(source), "metrics": metrics}
    (place / "report.json").write_text(json.dumps(values))
    write_torch(place / "model.pt", {"weights": {"place": str(place)}})
    return place / "model.pt"


def contest(root, seeds=(0, 1, 2)):
    """A dense network a seed; one run sparsified apart, then cut, and one cut at random."""
    for seed in seeds:
        at = root / f"seed{seed}"
        dense = stage(at / "dense" / "pretrain", {"top1": 90.0 + seed, **DENSE}, seed=seed)
        penalty = {"regularizer": {"name": "l21", "lam": 0.1}, "seed": seed}
        sparse = stage(at / "sparse" / "sparsify", {"top1": 50.0, **DENSE}, dense, **penalty)
        chosen = {"criterion": {"name": "stored"}, "seed": seed}
        stage(at / "l21" / "prune", {"top1": 80.0 + 2 * seed, **NARROW}, sparse, **chosen)
        drawn = {"criterion": {"name": "random", "seed": seed}, "seed": seed}
        stage(at / "random" / "prune", {"top1": 70.0, **NARROW}, dense, **drawn)


def test_a_run_knows_the_dense_network_it_came_from_through_others(tmp_path):
    contest(tmp_path)
    table = summary(collect([tmp_path])).set_index("run")
    assert table.loc["seed2/l21", ["dense_top1", "top1_change", "lam"]].tolist() == [92, -8, 0.1]
    assert table.loc["seed1/random", "top1_change"] == -21
    assert table.loc["seed2/l21", "method"] == "l21" and table.loc["seed2/l21", "seed"] == 2
    assert table.loc["seed0/random", "macs_ratio"] == 15
    ends = table["continued"]
    assert [run for run in table.index if ends[run]] == [
        f"seed{seed}/{name}" for seed in (0, 1, 2) for name in ("dense", "sparse")
    ]


def test_without_the_dense_run_its_figures_are_unknown(tmp_path):
    contest(tmp_path)
    paths = [tmp_path / f"seed{seed}" / "random" for seed in (0, 1)]
    table = summary(collect(paths))
    assert table["top1_change"].isna().all() and not table["continued"].any()


def test_seeds_are_one_line_ranked_by_their_mean(tmp_path):
    contest(tmp_path)
    means = SeedAverages.of(summary(collect([tmp_path])))
    lines = [dict(zip(means.table.keys, line, strict=True)) for line in means.table.lines]
    assert [line["run"] for line in lines] == [
        *("seed*/dense", "seed*/l21", "seed*/random", "seed*/sparse")
    ]
    assert {line["seeds"] for line in lines} == {"3"}
    by_run = {line["run"]: line for line in lines}
    assert by_run["seed*/l21"]["top1"] == "82.00 ± 2.00"
    assert by_run["seed*/l21"]["top1_change"] == "-9.00 ± 1.00"
    assert by_run["seed*/random"]["top1"] == "70.00"
    assert "lam" not in by_run["seed*/dense"], "all that have one have the same"
    assert by_run["seed*/random"]["params"] == "100"


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    contest(tmp_path, seeds=(0, 1))
    contest(tmp_path / "again", seeds=(0,))
    table = summary(collect([tmp_path]))
    assert len(table[table["method"] == "l21"]) > 4, "copies are listed"
    means = SeedAverages.of(table)
    lines = [dict(zip(means.table.keys, line, strict=True)) for line in means.table.lines]
    assert {line["seeds"] for line in lines} == {"2"}
    assert next(line["top1"] for line in lines if "l21" in line["run"]) == "81.00 ± 1.41"
    points = setting_means(table, "macs").set_index("method")
    assert points.loc["l21", "seeds"] == 2 and points.loc["l21", "top1"] == 81


def test_spreads_that_no_digit_shows_are_left_out_and_units_are_said_once(tmp_path):
    for seed, macs in ((0, 600), (1, 601), (2, 900)):
        at = tmp_path / f"seed{seed}"
        dense = stage(at / "pretrain", {"top1": 90.0, **DENSE}, seed=seed)
        metrics = {"top1": 70.001 + seed / 1000, "params": 100, "macs": macs}
        stage(at / "prune", metrics, dense, seed=seed)
    means = SeedAverages.of(summary(collect([tmp_path])))
    line = dict(zip(means.table.keys, means.table.lines[0], strict=True))
    assert (line["top1"], line["params_ratio"]) == ("70.00", "10.0x")
    assert (line["macs_ratio"], line["macs"]) == ("13.3 ± 2.9x", "700 ± 173")


def test_a_seed_of_a_part_that_is_not_the_runs_own_makes_another_setting(tmp_path):
    for run, drawn in (("a", 7), ("b", 8)):
        settings = {"criterion": {"name": "random", "seed": drawn}, "seed": 0}
        stage(tmp_path / run / "prune", {"top1": 70.0}, **settings)
    assert SeedAverages.of(summary(collect([tmp_path]))) is None


@pytest.mark.parametrize(
    ("own", "files", "one"),
    [
        ({"criterion": {"path": None}}, "scores", True),  # found beside the source
        ({"criterion": {}}, "scores", False),  # given
        ({"selection": {"path": None}}, "curves", True),
        ({"selection": {}}, "curves", False),
        ({"selection": {}}, "plan", False),
        ({}, "models", True),
        ({}, "images", False),
        ({}, "weights", False),
    ],
)
def test_files_that_follow_the_seed_are_no_other_setting(tmp_path, own, files, one):
    for seed in (0, 1):
        held = {"pretrain" if files == "models" else "content": f"sha256:{seed}"}
        settings = {**own, files: held if files in ("models", "images") else held["content"]}
        stage(tmp_path / str(seed) / "prune", {"top1": 70.0}, seed=seed, **settings)
    means = SeedAverages.of(summary(collect([tmp_path])))
    assert (means is not None) == one


def test_points_are_results_not_steps_on_the_way(tmp_path):
    contest(tmp_path)
    table = summary(collect([tmp_path]))
    assert setting_means(table, "macs")["method"].tolist() == ["l21", "random"]
    steps = table[table["continued"]]
    assert len(setting_means(steps, "macs")) == 2, "nothing else is there"


def test_the_report_prints_means_and_folds_the_runs(tmp_path, capsys):
    contest(tmp_path)
    main([str(tmp_path)])
    assert "d, means over seeds" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    assert "All 12 runs, and the commands" in text and "82.00 ±\N{NO-BREAK SPACE}2.00" in text
    for place in (tmp_path / "seed1", tmp_path / "seed2"):
        place.rename(tmp_path.parent / f"{tmp_path.name}-{place.name}")
    main([str(tmp_path)])
    assert "means over seeds" not in capsys.readouterr().out
    assert "All 4 runs" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["seed0/a", "seed1/a"], "seed*/a"),
        (["x"], "x"),
        (["a", "ab"], "a*"),
        (["aba", "aa"], "a*a"),
        (["a", "b"], "*"),
    ],
)
def test_the_name_of_several_runs(names, found):
    assert shared_name(names) == found


def test_a_spread_is_mean_and_deviation_unless_all_values_look_the_same():
    assert spread([90.0, 92.0]) == "91.00 ± 1.41"
    assert spread([90.001, 90.002, None, float("nan")]) == "90.00"
    assert spread([1.0, 3.0], "{:+.1f}x") == "+2.0 ± 1.4x"
    assert spread([], "{:.2f}") == "-" and spread(["a", "a"], "{}") == "a"
