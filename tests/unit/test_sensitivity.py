"""Sensitivity: curves against silencing, their interruption, and ratios against brute force."""

from __future__ import annotations

import csv
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Brightest, Reader, made, toy_data

from prunekit.engine import CutOptions, Traced
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.reporting.sensitivity import draw
from prunekit.runs.rundir import RunDir
from prunekit.selection import (
    Curve,
    LatencyTarget,
    MacsTarget,
    ParamsTarget,
    Scored,
    Sensitivity,
    curves_of,
    read_curves,
)
from prunekit.stages import Made, Request, execute
from prunekit.stages import sensitivity as stage
from prunekit.stages.root import Root
from prunekit.stages.sensitivity import Probe


@pytest.fixture(autouse=True)
def denormals():
    """Stages flush them for good; hypothesis wants them."""
    yield
    torch.set_flush_denormal(False)


COLUMNS = ("group", "removed", "units", "val_top1")


def asked(**changes):
    """Settings of the stage on the toy network."""
    probe = {"_target_": "prunekit.stages.sensitivity.Probe", "timing": None}
    probe |= {key: changes.pop(key) for key in ("shares", "groups", "images") if key in changes}
    return {
        "seed": 0,
        "dataset": {"_target_": "toys.Brightest"},
        "criterion": {"_target_": "prunekit.criteria.L1Norm"},
        "sensitivity": probe,
        "absorb": "auto",
        "over_norms": False,
        "statistics": "kept",
        "channel_selection": False,
        "placement": {"_target_": "prunekit.methods.hinge.Placement", "blocks": {}},
        "model": {"_target_": "toys.Reader"},
        "weights": None,
    } | changes


def swept(place, **changes):
    settings = asked(**changes)
    root = Root(stage="sensitivity", pipeline=["sensitivity"], name="toy")
    runtime = stage.Runtime(device="cpu", trust=("toys.Reader",))
    wanted = stage.MeasureSensitivity.of(settings)
    return execute(wanted, Request(settings, root, runtime, None, None), RunDir(place))


def table(place):
    with open(place / "sensitivity/sensitivity.csv", newline="") as file:
        return [*csv.DictReader(file)]


def test_useless_channels_cost_nothing_and_needed_ones_do(tmp_path):
    report, worked = swept(tmp_path)
    assert worked and {file.name for file in (tmp_path / "sensitivity").iterdir()} == {
        *("settings.json", "report.json", "sensitivity.csv", "sensitivity.png")
    }
    rows = table(tmp_path)
    assert len(rows) == 20 and {row["group"] for row in rows} == {"look", "pick"}
    for row in rows:
        removed, top1 = int(row["removed"]), float(row["val_top1"])
        spare = 11 if row["group"] == "look" else 0  # the others are never the brightest then
        assert (top1 == 100) == (removed <= spare)
        if not removed:
            assert float(row["share"]) == 0 or int(row["units"]) == 5
    assert report.metrics["val_top1"] == 100 and report.metrics["most_sensitive"] == "pick"
    assert report.metrics["lost/look"] == 0 < report.metrics["lost/pick"]
    assert "top1" not in report.metrics  # test images decide nothing
    model = Reader()
    graph = ChannelGraph.trace(model, torch.zeros(1, 1, 4, 4))
    cost = CostModel(model, graph)
    scores = {name: torch.arange(1.0, 1 + n) for name, n in (("look", 16), ("pick", 5))}
    chosen = Sensitivity(MacsTarget(0.4), tmp_path)
    masks = chosen.choose(scores, graph, cost)
    assert int(masks["pick"].sum()) == 5 and 5 <= int(masks["look"].sum()) < 7
    assert "no group loses" in chosen.select(Scored(scores, graph, cost)).notes[-1]


def test_points_are_the_silenced_network_and_share_nought_the_dense_one(tmp_path):
    """Without absorbing, cutting is silencing: another way to the same accuracy."""
    model, graph = made(Norms())
    data = toy_data(count=200)
    probe = Probe(shares=(0.3, 0.6), timing=None)
    scores = {g.name: torch.rand(len(g.units), dtype=torch.float64) for g in graph.groups}
    options = CutOptions(absorb=False, check=False)
    trial = stage.Trial(Traced.of(model, data.example), scores, options, False, data)
    points = stage._points(probe, trial)
    assert [point.removed for point in points] == [0, 2, 4, 0, 3, 5]
    images, labels = next(data.val.epoch(200, None))
    seen = []
    for point in points:
        lowest = scores[point.group].argsort()[: point.removed]
        assert sorted(lowest.tolist()) == (~point.keep).nonzero().flatten().tolist()
        with torch.no_grad(), graph.silencer(model, graph.drop({point.group: ~point.keep})):
            right = (model(images).argmax(dim=1) == labels).float().mean()
        seen.append(float(right))
        found = stage._top1(trial.narrowed(point), data.val, stage.Runtime(device="cpu"))
        assert found == pytest.approx(100 * float(right))
    assert len(set(seen)) > 2


class Norms(nn.Sequential):
    def __init__(self):
        convs = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 9, 3)]
        super().__init__(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_an_interrupted_sweep_continues_where_it_was(tmp_path, monkeypatch):
    swept(tmp_path / "whole")
    judge, calls = stage._top1, []

    def counted(*arguments):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(1)
        return judge(*arguments)

    monkeypatch.setattr(stage, "_top1", counted)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "cut")
    place = tmp_path / "cut/sensitivity"
    assert not (place / "report.json").exists()
    done = table(tmp_path / "cut")
    assert [row for row in table(tmp_path / "whole") if row in done] == done and len(done) < 20
    with pytest.raises(ArtifactError, match="is unfinished"):
        read_curves(tmp_path / "cut")
    calls.clear()
    monkeypatch.setattr(stage, "_top1", lambda *a: calls.append(1) or judge(*a))
    swept(tmp_path / "cut")
    points = {(row["group"], row["removed"]) for row in table(tmp_path / "whole")}
    assert len(calls) == len(points) - 1 - 4  # both groups begin with the same dense network
    for name in ("sensitivity.csv", "sensitivity.png"):
        whole = tmp_path / "whole/sensitivity" / name
        assert name.endswith("png") or (place / name).read_bytes() == whole.read_bytes()
    assert swept(tmp_path / "cut")[1] is Made.BEFORE
    with pytest.raises(ArtifactError, match="made with other settings"):
        swept(tmp_path / "cut", shares=[0.5])


def test_some_groups_some_images_and_statistics_anew(tmp_path):
    found = swept(tmp_path, groups=["pi*"], images=20, shares=[0.4], statistics="recomputed")[0]
    assert [row["group"] for row in table(tmp_path)] == ["pick", "pick"]
    assert found.metrics["images"] == 20 and found.metrics["groups"] == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shares": [0.5, 1.0]}, "sensitivity.shares=1.0 must be below 1"),
        ({"shares": [0]}, "sensitivity.shares=0 must be above 0"),
        ({"shares": []}, r"sensitivity.shares=\[\] is empty; give \[0.5\]"),
        ({"groups": ["fc*"]}, "sensitivity.groups: 'fc.' matches no layer"),
        ({"groups": ["say"]}, "leaves no channels that can go"),
        ({"images": 0}, "sensitivity.images=0 must be at least 1"),
        ({"dataset": {"_target_": "toys.Brightest", "val": 0}}, "this dataset has none; set"),
    ],
)
def test_settings_that_cannot_be_are_one_line(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words) as error:
        swept(tmp_path, **changes)
    assert "\n" not in str(error.value)


# curves


def test_losses_rise_are_met_at_the_points_and_end_with_everything():
    curve = Curve(10, (0, 2, 4, 8), (90.0, 91.0, 84.0, 86.0))
    expected = [0, 0, 3, 6, 6, 6, 6, 6, 48, 90]
    assert curve.losses().tolist() == pytest.approx(expected)
    assert Curve(2, (0, 1, 2), (90.0, 80.0, 30.0)).losses().tolist() == [10, 60]
    assert Curve(3, (0,), (60.0,)).losses().tolist() == pytest.approx([20, 40, 60])


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_losses_are_the_least_curve_that_rises_above_what_was_measured(data):
    units = data.draw(st.integers(1, 20))
    removed = sorted({0, *data.draw(st.sets(st.integers(1, units)))})
    top1 = [data.draw(st.floats(0, 100)) for _ in removed]
    losses = Curve(units, tuple(removed), tuple(top1)).losses().numpy()
    assert (np.diff(losses) >= -1e-9).all() and losses.min() >= 0
    for at, count in enumerate(removed[1:], start=1):
        assert losses[count - 1] == pytest.approx(max(top1[0] - min(top1[: at + 1]), 0))


def written(place, rows):
    with open(place / "sensitivity.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dict(zip(COLUMNS, row, strict=True)) for row in rows)
    return place / "sensitivity.csv"


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("a", 1, 4, 90)],
        [("a", 0, 4, 90), ("a", 5, 4, 80)],
        [("a", 0, 4, "nan")],
        [("a", 0, 4, "much")],
    ],
)
def test_a_damaged_file_of_curves_is_named(tmp_path, rows):
    file = written(tmp_path, rows)
    with pytest.raises(ArtifactError, match=r"sensitivity.csv holds no sensitivity curves"):
        read_curves(file)
    with pytest.raises(ArtifactError, match="run prunekit sensitivity first"):
        read_curves(tmp_path / "absent")


# the selection


class Two(nn.Sequential):
    """Two groups that share a layer: what one costs depends on the other."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3), nn.Flatten())
        self.append(nn.Linear(96, 5))


def two():
    model, graph = made(Two())
    scores = {g.name: torch.rand(len(g.units), dtype=torch.float64) for g in graph.groups}
    return graph, CostModel(model, graph), scores


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_common_tolerance_is_the_least_that_meets_the_budget(data, tmp_path_factory):
    """Of all tolerances, tried one by one; within it nothing that fits the budget is given up."""
    graph, cost, scores = two()
    rows = []
    for name, units in (("0", 5), ("2", 6)):
        steps = data.draw(st.lists(st.integers(0, 30), min_size=units, max_size=units))
        rows += [(name, k, units, 90 - step) for k, step in enumerate([0, *steps])]
    file = written(tmp_path_factory.mktemp("curves"), rows)
    keep = data.draw(st.floats(0.2, 1.0))
    budget = MacsTarget(keep) if data.draw(st.booleans()) else ParamsTarget(keep)
    price = cost.macs if isinstance(budget, MacsTarget) else cost.params
    allowed = keep * price(None) * (1 + 1e-9)
    lost = {name: curve.losses()[:-1].tolist() for name, curve in read_curves(file).items()}

    def spent(counts):
        gone = {
            name: torch.isin(torch.arange(len(scores[name])), scores[name].argsort()[:count])
            for name, count in counts.items()
        }
        return price(graph.drop(gone))

    tolerances = sorted({0.0, *lost["0"], *lost["2"]})
    most = [{n: sum(x <= t for x in lost[n]) for n in lost} for t in (-1.0, *tolerances)]
    within = [at for at, counts in enumerate(most) if spent(counts) <= allowed]
    chosen = Sensitivity(budget, file)
    if not within:
        with pytest.raises(ConfigError, match="cannot be reached"):
            chosen.choose(scores, graph, cost)
        return
    masks = chosen.choose(scores, graph, cost)
    found = {name: int((~mask).sum()) for name, mask in masks.items()}
    assert spent(found) <= allowed
    at = within[0]
    low = most[at - 1] if at else most[0]
    assert all(low[name] <= found[name] <= most[at][name] for name in found)
    for name, mask in masks.items():  # the lowest scores go
        assert not mask.any() or mask.all() or scores[name][~mask].max() < scores[name][mask].min()


def test_equal_losses_are_spread_over_the_groups(tmp_path):
    graph, cost, scores = two()
    file = written(tmp_path, [(n, k, u, 90) for n, u in (("0", 5), ("2", 6)) for k in range(u + 1)])
    masks = Sensitivity(MacsTarget(0.3), file).choose(scores, graph, cost)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"0": 2, "2": 3}


def test_curves_and_network_must_agree(tmp_path):
    graph, cost, scores = two()
    both = [("0", 0, 5, 90), ("2", 0, 6, 90)]
    for rows, words in (
        ([*both, ("7", 0, 6, 90)], "has a curve of 7, which this network has not"),
        ([("0", 0, 4, 90), both[1]], "0 has 4 units there and 5 here"),
        (both[:1], "has no curve of 2; run prunekit sensitivity"),
    ):
        with pytest.raises(ArtifactError, match=words):
            Sensitivity(MacsTarget(0.5), written(tmp_path, rows)).choose(scores, graph, cost)
    file = written(tmp_path, both[:1])
    masks = Sensitivity(MacsTarget(0.6, ignore=["2"]), file).choose(scores, graph, cost)
    assert masks["2"].all() and not masks["0"].all()
    with pytest.raises(ConfigError, match=r"selection.path is not set"):
        Sensitivity(MacsTarget(0.5)).choose(scores, graph, cost)
    with pytest.raises(ConfigError, match=r"path=\{\} is no path"):
        Sensitivity(MacsTarget(0.5), {})


def test_the_budget_may_be_one_of_latency():
    chosen = Sensitivity(LatencyTarget(0.5, min_keep=2, rounds=3), "a")
    assert (chosen.min_keep, chosen.rounds, chosen.budget.normalise) == (2, 3, None)


@pytest.mark.parametrize(("groups", "timed"), [*product((2, 60), (True, False))])
def test_the_picture_has_a_panel_for_what_is_known(tmp_path, groups, timed):
    rows = [
        {"group": f"layer{i}.conv", "share": s, "removed": int(10 * s), "units": 10}
        | {"val_top1": 90 - i * s, "macs": 100 - 10 * s, "params": 9}
        | ({"ms": 5.0 - s} if timed else {})
        for i in range(groups)
        for s in (0.0, 0.3, 0.6, 0.9)
    ]
    draw(rows, tmp_path / "a.png", "title")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(curves_of(rows)) == groups


def test_the_toy_is_read_without_a_mistake():
    x, y = next(Brightest().load().val.epoch(60, None))
    assert torch.equal(Reader()(x).argmax(dim=1), y)
