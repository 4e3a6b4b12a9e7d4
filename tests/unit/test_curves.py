"""The figure of accuracy against size: what its points are, and that it is drawn."""

from __future__ import annotations

import pandas as pd
import pytest

from prunekit.errors import ArtifactError
from prunekit.reporting.tradeoff import accuracy_against_size, averaged, small_shares


def run(method="tl1", lam=0.01, setting="a", size=0.5, pruned=60.0, tuned=80.0, **more):
    return {
        **{"run": f"{method}{setting}{pruned}", "model": "resnet20", "dataset": "cifar10"},
        **{"method": method, "lam": lam, "setting": setting},
        **{"params_share": size, "macs_share": size / 2, "dense_top1": 82.0},
        **{"pruned_top1": pruned, "tuned_top1": tuned},
        **more,
    }


def frame(*runs):
    return pd.DataFrame([*runs])


def test_seeds_of_a_setting_are_one_point():
    points = averaged(
        frame(
            run(size=0.4, pruned=50.0, tuned=80.0),
            run(size=0.6, pruned=54.0, tuned=82.0),
            run(setting="b", tuned=None),
        )
    ).set_index("setting")
    a, b = points.loc["a"], points.loc["b"]
    assert (a["seeds"], b["seeds"]) == (2, 1)
    assert a["params_share"] == pytest.approx(0.5) and a["macs_share"] == pytest.approx(0.25)
    assert (a["pruned_top1"], a["tuned_top1"]) == (52.0, 81.0)
    assert a["pruned_top1_std"] == pytest.approx(8**0.5)  # deviations of 2, one degree of freedom
    assert a["tuned_top1_std"] == pytest.approx(2**0.5)
    assert pd.isna(b["tuned_top1"]) and pd.isna(b["pruned_top1_std"])


def test_small_shares_are_averaged_by_method_and_strength():
    runs = frame(
        run(**{"below/1e-02": 0.5, "below/1e-06": 0.0}),
        run(setting="b", **{"below/1e-02": 0.7, "below/1e-06": 0.2}),
        run(lam=0.1, **{"below/1e-02": 1.0, "below/1e-06": 0.9}),
        run("l1", **{"below/1e-02": None, "below/1e-06": None}),
    )
    found = small_shares(runs)
    assert set(found) == {("tl1", 0.01), ("tl1", 0.1)}
    assert found["tl1", 0.01] == pytest.approx({1e-2: 0.6, 1e-6: 0.1})
    assert small_shares(frame(run())) == {}


def words(file):
    """Texts of an svg, which matplotlib draws as paths and names in comments."""
    return [line.strip()[5:-4] for line in file.read_text().splitlines() if "<!--" in line]


def test_a_collapse_has_panels_of_its_own(tmp_path):
    near = frame(run(pruned=79.0), run("l1", setting="b", size=0.3, pruned=78.0, tuned=79.0))
    accuracy_against_size(near, tmp_path / "near.svg")
    found = words(tmp_path / "near.svg")
    assert "Test accuracy (%)" in found and {"tl1", "l1", "dense"} <= set(found)
    assert {"right after pruning", "fine-tuned"} <= set(found)
    accuracy_against_size(frame(run(pruned=10.0), run(setting="b", size=0.3)), tmp_path / "far.svg")
    found = words(tmp_path / "far.svg")
    assert {"Accuracy, fine-tuned (%)", "Accuracy right after pruning (%)"} <= set(found)
    assert "Test accuracy (%)" not in found


def test_runs_of_one_size_stand_side_by_side(tmp_path):
    equal = frame(run(size=0.5), run("l1", setting="b", size=0.502, tuned=79.0))
    accuracy_against_size(equal, tmp_path / "equal.svg")
    assert "Parameters kept (%): 50.0 to 50.2, side by side" in words(tmp_path / "equal.svg")


def test_small_scales_and_strengths_are_shown_where_they_are_known(tmp_path):
    shares = {"below/1e-02": 0.5, "below/1e-06": 0.1}
    runs = frame(run(**shares), run(lam=0.1, setting="b", size=0.3, **shares))
    accuracy_against_size(runs, tmp_path / "small.svg")
    found = words(tmp_path / "small.svg")
    assert "Penalised rows below it (%)" in found
    assert "light to dark: lam 0.01 to 0.1" in found


@pytest.mark.parametrize(("ending", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF")])
def test_the_ending_says_how_it_is_written(tmp_path, ending, start):
    one = run(pruned=None)
    accuracy_against_size(frame(one), tmp_path / f"curve{ending}")
    assert (tmp_path / f"curve{ending}").read_bytes().startswith(start)


def test_without_a_pruned_run_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ArtifactError, match="no run has an accuracy after pruning beside"):
        accuracy_against_size(frame(run(pruned=None, tuned=None)), tmp_path / "curve.png")
    with pytest.raises(ArtifactError, match="no run has an accuracy after pruning beside"):
        accuracy_against_size(pd.DataFrame({"run": ["a"]}), tmp_path / "curve.png")
    assert not list(tmp_path.iterdir())
