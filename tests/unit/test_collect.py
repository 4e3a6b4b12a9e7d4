"""Which stages are found, and tables as LaTeX."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import ArtifactError
from prunekit.reporting.collect import collect
from prunekit.reporting.formats import escape_latex, latex
from prunekit.reporting.pareto import front, fronts, setting_means
from prunekit.reporting.plots import by_layer, layer_costs, scores
from prunekit.reporting.tables import by_data, summary


def stage(place, metrics=None, **settings):
    place.mkdir(parents=True)
    found = {"top1": 90.0} | (metrics or {})
    values = {"stage": place.name, "settings": settings, "source": None, "metrics": found}
    (place / "report.json").write_text(json.dumps(values))


def test_hidden_folders_are_left_out_but_links_into_them_count(tmp_path):
    stage(tmp_path / ".shared" / "x" / "pretrain")
    for run in ("a", "b"):
        stage(tmp_path / run / "prune")
        os.symlink(tmp_path / ".shared" / "x" / "pretrain", tmp_path / run / "pretrain")
    frame = collect([tmp_path])
    found = [*zip(frame["run"], frame["stage"], strict=True)]
    assert found == [("a", "pretrain"), ("a", "prune"), ("b", "pretrain"), ("b", "prune")]
    assert collect([tmp_path / ".shared"])["run"].tolist() == ["x"]


def test_runs_that_are_links_are_listed_once(tmp_path):
    """Whole runs, folders of runs, links to what is there anyway, and circles."""
    far = tmp_path / "far"
    for run in ("one", "two/deep"):
        stage(far / run / "prune")
    root = tmp_path / "root"
    stage(root / "own" / "prune")
    os.symlink(far / "one", root / "best")
    os.symlink(far / "two", root / "more")
    os.symlink(root / "own", root / "again")
    os.symlink(root, root / "circle")
    os.symlink(tmp_path / "nothing", root / "broken")
    frame = collect([root])
    assert frame["run"].tolist() == ["best", "more/deep", "own"]
    assert frame["path"].tolist()[0] == str(far / "one" / "prune")
    os.symlink(root, tmp_path / "entry")
    assert collect([tmp_path / "entry"])["run"].tolist() == ["best", "more/deep", "own"]


def test_runs_of_one_name_below_two_paths_are_two(tmp_path):
    for root in ("one", "two"):
        stage(tmp_path / root / "demo" / "prune", seed=len(root))
    table = summary(collect([tmp_path / "one", tmp_path / "two"]))
    assert table["run"].tolist() == [str(tmp_path / r / "demo") for r in ("one", "two")]


def test_a_summary_of_one_data_set_is_one_part_with_the_unfinished(tmp_path):
    stage(tmp_path / "a" / "prune", dataset={"name": "digits", "test": 40})
    (tmp_path / "b" / "prune").mkdir(parents=True)
    (tmp_path / "b" / "prune" / "settings.json").write_text("{}")
    parts = by_data(summary(collect([tmp_path])))
    assert [(title, list(part["run"])) for title, part in parts] == [("digits", ["a", "b"])]


def test_one_name_and_other_images_are_two_parts(tmp_path):
    for run, images in (("a", "01234567"), ("b", "89abcdef"), ("c", "01234567")):
        stage(tmp_path / run / "prune", {"test_images": images}, dataset={"name": "mnist"})
    parts = by_data(summary(collect([tmp_path])))
    assert [(title, list(part["run"])) for title, part in parts] == [
        ("mnist images=01234567", ["a", "c"]),
        ("mnist images=89abcdef", ["b"]),
    ]


def test_latex_escapes_every_sign_and_has_a_cell_a_column():
    table = pd.DataFrame({"run": ["a_b & 5 %", r"\x{1}~^"], "top1": [98.25, None]})
    lines = latex(table, "100 % of #1").splitlines()
    assert lines[2] == r"\caption{100 \% of \#1}" and lines[3] == r"\begin{tabular}{lr}"
    assert lines[5] == r"run & top-1 \% \\" and lines[7] == r"a\_b \& 5 \% & 98.25 \\"
    assert lines[8] == r"\textbackslash{}x\{1\}\textasciitilde{}\textasciicircum{} & - \\"
    assert escape_latex("a<b>|c") == r"a\textless{}b\textgreater{}\textbar{}c"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here to set the table")
def test_latex_sets_the_table(tmp_path):
    table = pd.DataFrame({"run": [r"\a_b&%$#{}~^<>|"], "top1": [98.25]})
    text = latex(table, "t")
    body = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}" + text + r"\end{document}"
    )
    (tmp_path / "t.tex").write_text(body)
    line = ("pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex")
    subprocess.run(line, cwd=tmp_path, check=True, capture_output=True)


numbers = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_the_front_is_what_no_point_beats(points):
    costs, gains = [c for c, _ in points], [g for _, g in points]

    def beaten(cost, gain):
        return any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)

    assert front(costs, gains) == [not beaten(*point) for point in points]


def test_settings_are_means_over_their_seeds(tmp_path):
    runs = pd.DataFrame(
        {
            "run": ["a", "b", "c", "d"],
            "method": ["x", "x", "y", "y"],
            "setting": ["s", "s", "t", None],
            "top1": [90.0, 92.0, 80.0, None],
            "macs": [10, 20, 30, 40],
        }
    )
    points = setting_means(runs, "macs").set_index("setting")
    assert points["run"].to_dict() == {"s": "*", "t": "c"}
    assert points.loc["s", ["top1", "macs", "seeds"]].tolist() == [91.0, 15.0, 2]
    assert points["on_front"].to_dict() == {"s": True, "t": False}
    assert points.loc["s", "top1_std"] == pytest.approx(2**0.5)
    fronts(runs, tmp_path / "f.svg", ("macs", "params"))
    assert (tmp_path / "f.svg").stat().st_size > 1000
    with pytest.raises(ArtifactError, match="no run has an accuracy beside gpu_ms"):
        fronts(runs, tmp_path / "g.svg", ("gpu_ms",))


def test_layers_that_were_parted_count_for_the_dense_one(tmp_path):
    rows = [
        ("dense", "conv", 800.0, 4.0),
        ("dense", "relu", None, 1.0),
        ("narrow", "conv.0", 100.0, 1.0),
        ("narrow", "conv.1", 50.0, 0.5),
        ("narrow", "relu", None, 0.25),
    ]
    layers = pd.DataFrame(rows, columns=["network", "layer", "macs", "cpu_ms"])
    rest = "all other modules"
    assert by_layer(layers) == {
        "dense": {"macs": {"conv": 800, rest: 0}, "cpu_ms": {"conv": 4.0, rest: 1.0}},
        "narrow": {"macs": {"conv": 150, rest: 0}, "cpu_ms": {"conv": 1.5, rest: 0.25}},
    }
    layer_costs(layers, tmp_path / "l.svg")
    with pytest.raises(ArtifactError, match="no layer is known"):
        layer_costs(layers.iloc[:0], tmp_path / "m.svg")


def test_zero_scores_alone_are_no_histogram(tmp_path):
    with pytest.raises(ArtifactError, match="no unit has a score above zero"):
        scores({"a": [0.0, 0.0]}, {}, tmp_path / "s.svg")
    scores({"a": [1.0, 1.0]}, {}, tmp_path / "s.svg")
    assert (tmp_path / "s.svg").is_file()
