"""Latency tables with a clock that counts multiply-adds, so that predictions can be checked."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunekit.criteria import L1Norm, Random
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import Clock, CostModel, LatencyTest, TimedCost
from prunekit.measure.latency import Latency
from prunekit.measure.latency_table import LayerTimes
from prunekit.methods.hinge import FoldedCost
from prunekit.selection import LatencyTarget, PerLayer, Scored
from prunekit.surgery import Narrow


@dataclass(frozen=True)
class Counting(LatencyTest):
    """A millisecond is a million multiply-adds; `slower` and a `power` hold for whole networks."""

    batch: int = 1
    slower: float = 1.0
    power: float = 1.0

    def run(self, models, example, device="cpu", engine="eager"):
        x = self.inputs(example)
        times = {name: self.slower * flops(m, x) ** self.power for name, m in models.items()}
        return {name: Latency(ms, ms, ms, 5, ms) for name, ms in times.items()}

    def race(self, runners, x):
        times = {name: flops(runner, x) for name, runner in runners.items()}
        return {name: Latency(ms, ms, ms, 5, ms) for name, ms in times.items()}


@torch.inference_mode()
def flops(runner, x):
    with FlopCounterMode(display=False) as counter:
        runner(x)
    return counter.get_total_flops() / 2e6


class Net(nn.Module):
    """Plain, strided, depthwise, grouped and transposed convolutions, one called twice, linears."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1, stride=2)
        self.depth = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.bn = nn.BatchNorm2d(40)
        self.twice = nn.Conv2d(40, 40, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(40, 64, 1, groups=2)
        self.back = nn.ConvTranspose2d(64, 48, 2, stride=2)
        self.hidden, self.fc = nn.Linear(48, 100), nn.Linear(100, 10)

    def forward(self, x):
        x = torch.relu(self.bn(self.depth(self.stem(x))))
        x = x + self.twice(torch.relu(self.twice(x)))
        x = self.back(torch.relu(self.grouped(x))).mean((2, 3))
        return self.fc(torch.relu(self.hidden(x)))


EXAMPLE = torch.zeros(1, 3, 12, 12)


def made(timing):
    torch.manual_seed(0)
    model = Net().eval()
    graph = ChannelGraph.trace(model, EXAMPLE)
    return model, graph, TimedCost(model, graph, EXAMPLE, timing)


def narrowed(model, graph, drop):
    twin = copy.deepcopy(model)
    Narrow.of(graph, drop).apply(twin)
    return twin


def chosen(graph, model, cost, selection):
    masks = selection.choose(Random().scores(model, graph, None), graph, cost)
    return graph.drop({name: ~mask for name, mask in masks.items()})


@pytest.mark.parametrize("batch", [1, 3])
def test_predictions_of_a_linear_clock_are_exact(batch):
    """Multiply-adds are linear on either side, as the interpolation is."""
    timing = Counting(batch=batch)
    model, graph, cost = made(timing)
    assert cost.latency() == pytest.approx(timing.run({"": model}, EXAMPLE)[""].median_ms)
    assert cost.latency() == pytest.approx(batch * CostModel(model, graph).macs() / 1e6)
    for keep in (0.45, 0.6, 0.83):
        drop = chosen(graph, model, cost, PerLayer(keep, min_keep=16))
        narrow = timing.run({"": narrowed(model, graph, drop)}, EXAMPLE)[""].median_ms
        assert cost.latency(drop) == pytest.approx(narrow)


def test_fewer_channels_than_were_timed_are_no_faster():
    model, graph, cost = made(Counting())
    fewest = cost.latency(chosen(graph, model, cost, PerLayer(0.02)))
    times = cost._tables["stem"][0][0]
    assert times.ins == (3,) and times.outs == (16, 32, 40)
    assert times.at(3, 1) == times.at(3, 16) < times.at(3, 17)
    assert 0 < fewest < 0.3 * cost.latency()


def test_layers_are_timed_once_per_kind_and_only_at_what_can_change():
    _, _, cost = made(Counting())
    tables = cost._tables
    assert tables.keys() == {"stem", "depth", "twice", "grouped", "back", "hidden", "fc"}
    assert [count for _, count in tables["twice"]] == [2]
    assert tables["depth"][0][0].ins == (16, 32, 40) and len(tables["depth"][0][0].outs) == 1
    assert tables["fc"][0][0].outs == (10,) and tables["fc"][0][0].ins == (16, 32, 64, 80, 100)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(5)))
    graph = ChannelGraph.trace(model, torch.zeros(1, 16, 8, 8))
    cost = TimedCost(model, graph, torch.zeros(1, 16, 8, 8), Counting())
    assert len({id(cost._tables[name][0][0]) for name in ("1", "2", "3")}) == 1


def test_what_layers_do_not_explain_shrinks_with_the_activations():
    model, graph, cost = made(Counting(slower=1.5))
    layers = flops(model, EXAMPLE)
    assert cost.latency() == pytest.approx(1.5 * layers)
    drop = chosen(graph, model, cost, PerLayer(0.5, min_keep=16))
    left = sum(p.numel() for p in entries(narrowed(model, graph, drop)))
    share = left / sum(p.numel() for p in entries(model))
    rest = cost.latency(drop) - flops(narrowed(model, graph, drop), EXAMPLE)
    assert rest / (0.5 * layers) == pytest.approx(share, rel=0.05)


def entries(model):
    """What the layers of a network return."""
    found = []
    for module in model.children():
        module.register_forward_hook(lambda _, args, out: found.append(out))
    with torch.inference_mode():
        model(EXAMPLE)
    return found


def test_layers_that_take_longer_by_themselves_are_scaled():
    """As on a GPU, where launches overlap in a whole network."""
    model, graph, cost = made(Counting(slower=0.5))
    assert cost.latency() == pytest.approx(0.5 * flops(model, EXAMPLE))
    drop = chosen(graph, model, cost, PerLayer(0.5, min_keep=16))
    narrow = flops(narrowed(model, graph, drop), EXAMPLE)
    assert cost.latency(drop) == pytest.approx(0.5 * narrow)


def test_times_that_fall_with_more_channels_are_smoothed():
    cells = {(8, 8): 1.0, (8, 16): 3.0, (16, 8): 2.0, (16, 16): 2.0}
    times = LayerTimes.of(cells)
    assert times.ms == ((1.0, 2.5), (2.0, 2.5)) or times.ms[1][1] >= max(times.ms[0][1], 2.0)
    for row in times.ms:
        assert list(row) == sorted(row)
    for column in zip(*times.ms, strict=True):
        assert list(column) == sorted(column)
    assert LayerTimes.of({(8, 16): 1.0, (16, 32): 3.0}).at(12, 24) == 2.0  # depthwise


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("ask", [{"keep": 0.5}, {"milliseconds": 1.0}], ids=["share", "ms"])
def test_what_the_table_gets_wrong_is_corrected_by_measuring(scope, ask):
    """Whole networks follow another law than the table, and are near the target all the same."""
    timing = Counting(slower=2.0, power=0.6)
    model, graph, cost = made(timing)
    selection = LatencyTarget(**ask, timing=timing, scope=scope)
    scores = L1Norm().scores(model, graph, None)
    selected = selection.select(Scored(scores, graph, cost))
    drop = selected.keep.removed
    times = timing.run({"dense": model, "narrow": narrowed(model, graph, drop)}, EXAMPLE)
    narrow, dense = times["narrow"].median_ms, times["dense"].median_ms
    reached = narrow / dense if "keep" in ask else narrow
    (asked,) = ask.values()
    assert reached == pytest.approx(asked, rel=0.05)
    (aim,) = selected.aims
    assert (aim.asked, aim.reached, aim.met) == (asked, pytest.approx(reached), True)
    assert abs(aim.predicted / asked - 1) > 0.05  # the table alone would have missed
    *_, note = selected.notes
    assert note.startswith(f"latency: {narrow:.4g} of {dense:.4g} ms measured")


def test_a_latency_out_of_reach_is_refused_or_the_nearest_taken():
    timing = Counting(slower=2.0, power=0.6)
    model, graph, cost = made(timing)
    scores = L1Norm().scores(model, graph, None)
    with pytest.raises(ConfigError, match=r"selection.keep=0.01 cannot be reached.* to 1;"):
        LatencyTarget(0.01, timing=timing).choose(scores, graph, cost)
    near = LatencyTarget(0.01, timing=timing, on_miss="nearest")
    selected = near.select(Scored(scores, graph, cost))
    assert all(int(mask.sum()) == 1 for mask in selected.keep.values())
    assert selected.notes[0].startswith("asked to keep 0.01 of the latency, kept 0.")


def test_a_cost_model_with_a_clock_measures_once_for_every_timing():
    model, graph, _ = made(Counting())
    selection, cost = (
        LatencyTarget(0.5, timing=Counting()),
        FoldedCost(model, graph, Clock(EXAMPLE)),
    )
    timed = cost.timed(Counting())
    assert timed is cost.timed(Counting()) and timed is timed.timed(Counting(batch=2))
    assert timed is not cost.timed(Counting(batch=2))
    with pytest.raises(ConfigError, match="needs a cost model that measures"):
        selection.choose(L1Norm().scores(model, graph, None), graph, CostModel(model, graph))


def test_progress_is_told():
    told = []

    def track(items, label, total):
        for item in items:
            told.append((label, total))
            yield item

    model, graph, _ = made(Counting())
    TimedCost(model, graph, EXAMPLE, Counting(), track=track).latency()
    assert set(told) == {("timing layers", len(told))} and len(told) == 25


@pytest.mark.parametrize(
    "make",
    [
        lambda: LatencyTarget(),
        lambda: LatencyTarget(0.5, 3.0),
        lambda: LatencyTarget(1.5),
        lambda: LatencyTarget(milliseconds=0),
        lambda: LatencyTarget(0.5, timing=3),
    ],
)
def test_settings_are_refused_at_construction(make):
    with pytest.raises(ConfigError, match=r"^(keep|milliseconds|timing)="):
        make()


def test_a_real_clock_gives_a_network_that_runs_and_is_smaller():
    timing = LatencyTest(runs=5, warmup=1, seconds=1)
    model, graph, cost = made(timing)
    selection = LatencyTarget(0.8, timing=timing, on_miss="nearest")
    masks = selection.choose(L1Norm().scores(model, graph, None), graph, cost)
    drop = graph.drop({name: ~mask for name, mask in masks.items()})
    assert cost.compared(drop).narrow_ms > 0 and cost.macs(drop) < cost.macs()
    assert narrowed(model, graph, drop)(EXAMPLE).isfinite().all()
