"""One threshold searched for a share of MACs: by hand, and against the released search."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import counted_macs
from prunekit.methods.hinge import (
    FoldedCost,
    InsertMatrices,
    MatrixNorm,
    Placement,
    Threshold,
    fold,
)
from prunekit.models import resnet20
from prunekit.selection import Scored
from prunekit.surgery import Narrow

EXAMPLE = torch.zeros(1, 3, 32, 32)
FLOOR = 0.2593  # of the MACs of ResNet-20: 4 of 16, 7 of 32 and 13 of 64 rows of each matrix


class Case:
    """Two convolutions of 5 and 10 filters, and a classifier that stays whole."""

    def __init__(self, first, second):
        self.model = nn.Sequential(
            nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Conv2d(5, 10, 1), nn.Flatten(), nn.Linear(10, 2)
        )
        self.graph = ChannelGraph.trace(self.model, torch.zeros(1, 1, 1, 1))
        self.cost = FoldedCost(self.model, self.graph)
        self.scores = {"0": torch.tensor(first), "2": torch.tensor(second)}
        self.given = (self.scores, self.graph, self.cost)

    def at(self, threshold, **settings):
        return as_lists(Threshold(0.5, **settings).at(threshold, *self.given))

    def pair(self):
        self.cost.pairs = (("0", "2"),)
        return self


def as_lists(masks):
    return {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()}


def spread(first=(5.0, 1.0, 4.0, 2.0, 3.0)):
    return Case([*first], [0.0, 9.0, 0.5, 8.0, 1.0, 7.0, 1.5, 6.0, 2.5, 0.0])


def decomposed():
    """ResNet-20 with a matrix behind both convolutions of every block."""
    torch.manual_seed(0)
    model = resnet20()
    InsertMatrices.of(model, EXAMPLE, Placement(blocks={"basic": ("rows", "rows")})).apply(model)
    return model


@pytest.fixture(scope="module")
def resnet():
    """The network, its singular values, graph and cost."""
    model = decomposed()
    graph = ChannelGraph.trace(model, EXAMPLE)
    scores = MatrixNorm().scores(model, graph, None)
    return SimpleNamespace(
        model=model, scores=scores, given=(scores, graph, FoldedCost(model, graph))
    )


def test_a_threshold_keeps_what_is_not_below_it():
    assert spread().at(2.5, floor=0.1) == {"0": [0, 2, 4], "2": [1, 3, 5, 7, 8]}
    assert spread().at(8.5, floor=0.1) == {"0": [0], "2": [1]}


def test_at_zero_all_stay_and_above_it_no_zero_does():
    assert spread().at(0.0) == {"0": [0, 1, 2, 3, 4], "2": [*range(10)]}
    assert spread().at(1e-300) == {"0": [0, 1, 2, 3, 4], "2": [*range(1, 9)]}


@pytest.mark.parametrize(
    ("floor", "first", "second"),
    [(0.0, 1, 1), (0.2, 1, 2), (0.21, 2, 3), (0.6, 3, 6), (0.7, 4, 7), (1.0, 5, 10)],
)
def test_the_floor_is_rounded_up_and_filled_from_the_largest(floor, first, second):
    case = spread()
    for name, count in {"0": first, "2": second}.items():
        order = sorted(range(len(case.scores[name])), key=lambda i: -case.scores[name][i])
        assert case.at(math.inf, floor=floor)[name] == sorted(order[:count])


def test_the_floor_takes_the_earlier_of_equals_zeros_too():
    case = Case([1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 10)
    assert case.at(9.0, floor=0.4) == {"0": [1, 2], "2": [0, 1, 2, 3]}


def test_the_second_matrix_keeps_the_share_of_the_first():
    """Of 5 stay 3 and 1, so of 10 stay 6 and 2, its largest."""
    case = spread().pair()
    assert case.at(2.5, same_ratio=True) == {"0": [0, 2, 4], "2": [1, 3, 5, 6, 7, 8]}
    assert case.at(4.5, same_ratio=True) == {"0": [0], "2": [1, 3]}
    assert case.at(2.5, floor=0.7, same_ratio=True)["2"] == [*range(1, 9)]


def test_a_half_unit_goes_up():
    case = Case([1.0] * 10, [0.0] * 5)  # the first matrix has 5 units here
    case.scores = {"0": torch.tensor([5.0, 1, 2, 3, 4]), "2": torch.arange(10.0)}
    case.cost.pairs = (("2", "0"),)
    selection = Threshold(0.5, same_ratio=True)
    kept = [
        (int(masks["2"].sum()), int(masks["0"].sum()))
        for at in (9, 8, 7, 6, 5, 4)
        for masks in [selection.at(at, case.scores, case.graph, case.cost)]
    ]
    assert kept == [(2, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)]


@pytest.mark.parametrize("keep", [1.0, 0.9, 0.6, 0.4516, 0.3])
@pytest.mark.parametrize("same", [False, True])
def test_a_network_is_folded_to_the_share_that_was_found(resnet, keep, same):
    selection, (scores, graph, cost) = Threshold(keep, same_ratio=same), resnet.given
    selected = selection.select(Scored(scores, graph, cost))
    masks, (aim,) = selected.keep, selected.aims
    assert aim.met and aim.asked == keep
    narrow = decomposed()
    Narrow.of(graph, graph.drop({name: ~mask for name, mask in masks.items()})).apply(narrow)
    counted = counted_macs(fold(narrow, torch.randn(2, 3, 32, 32)).model, EXAMPLE)
    assert counted / cost.macs() == aim.reached
    if same:
        for first, second in cost.pairs:
            assert masks[first].sum() == masks[second].sum()


def test_below_the_floor_is_refused_with_what_can_be_asked_for(resnet):
    message = rf"selection\.keep=0\.2 cannot be reached: selection\.floor=0\.2 .*leave {FLOOR}"
    with pytest.raises(ConfigError, match=message):
        Threshold(0.2).choose(*resnet.given)
    (aim,) = Threshold(FLOOR).select(Scored(*resnet.given)).aims
    assert aim.met and aim.reached <= FLOOR
    near = Threshold(FLOOR - 0.0049)  # as near as counts as met
    assert near.select(Scored(*resnet.given)).aims[0].reached == aim.reached
    with pytest.raises(ConfigError, match="cannot be reached"):
        Threshold(0.2).check(*resnet.given)
    assert Threshold(0.2, floor=0.1).check(*resnet.given) is None


def at(selection, threshold, case):
    """The answer of a selection, had it chosen this threshold."""
    keep = selection.at(threshold, *case.given)
    return selection.select(Scored(*case.given)).recount(keep)


def test_what_is_missed_held_and_found_is_told():
    case = spread()
    selection = Threshold(0.4, floor=0.2)
    selected = selection.select(Scored(*case.given))
    (aim,), told = selected.aims, selected.notes
    assert not aim.met
    assert any("asked to keep 0.4 of the MACs, kept 0.373" in note for note in told)
    assert any("nearest reachable" in note for note in told)
    del case.scores["2"]
    told = at(Threshold(0.7), 4.5, case).notes
    assert "not scored, so kept whole: 2" in told
    held = at(Threshold(0.8, floor=0.6), 4.5, case).notes
    assert "norms up to 2 went" in held[1]
    assert at(Threshold(1.0), 0.0, case).notes[1:] == ()


def test_groups_that_the_floor_held_are_named():
    case = Case([5.0, 1.0, 4.0, 2.0, 3.0], [0.1] * 10)
    selection = Threshold(0.5, floor=0.2)
    told = at(selection, 2.5, case).notes
    assert "norms up to 2 went, but for what the floor kept in 1 of 2 groups (2)" in told


def test_of_networks_that_cost_the_same_the_one_that_keeps_most_is_taken(resnet):
    """With 15 of 16 rows a layer is merged again, at the cost of the whole one; 14 cost less."""
    scores, graph, cost = resnet.given
    one = {name: score for name, score in scores.items() if name.startswith("layer1.0.conv1")}
    flat = next(iter(one.values())).sort().values
    same = [
        float(cut)
        for cut in flat
        if cost.macs(
            graph.drop({n: ~m for n, m in Threshold(1).at(float(cut), one, graph, cost).items()})
        )
        == cost.macs()
    ]
    assert len(same) == 2
    assert all(bool(mask.all()) for mask in Threshold(1.0).choose(one, graph, cost).values())


@pytest.mark.parametrize(
    ("macs", "keep", "left"),
    [
        ((100, 75, 25, 10, 10), 0.5, 3),  # both as near: the cheaper one
        ((100, 62, 62, 62, 50), 0.6, 4),  # above what was asked for: the most rows at this cost
        ((100, 70, 59, 59, 59), 0.6, 3),  # below it too
        ((100, 100, 100, 60, 60), 1.0, 5),
    ],
)
def test_of_equals_the_cheaper_then_the_larger_is_taken(macs, keep, left):
    """`macs` of the networks in which so many of 5 units, in the order of their norms, are gone."""
    case = spread()
    cost = SimpleNamespace(macs=lambda drop=None: macs[0 if drop is None else int(drop.sum())])
    masks = Threshold(keep).choose({"0": case.scores["0"]}, case.graph, cost)
    assert int(masks["0"].sum()) == left


def test_few_thresholds_are_tried(resnet, monkeypatch):
    calls = []
    macs = FoldedCost.macs
    monkeypatch.setattr(FoldedCost, "macs", lambda *given: calls.append(1) or macs(*given))
    Threshold(0.45).choose(*resnet.given)
    assert len(calls) / 2 <= 2 * math.ceil(math.log2(sum(map(len, resnet.scores.values())))) + 3


def released(share, target, threshold=5e-3, step=0.01, tolerance=1e-3):
    """Algorithm 2 as released: the shares of all thresholds it measures, the last one its end."""
    found, previous = [], 1.0
    for turn in range(100):
        found.append(share(threshold))
        if abs(found[-1] - target) <= tolerance:
            break
        low, high = sorted((previous, found[-1]))
        if turn and low <= target <= high:
            step /= 2
        previous = found[-1]
        threshold = threshold + step if found[-1] > target else max(threshold - step, 0)
    return found


@pytest.mark.parametrize("target", [0.9, 0.7, 0.4516, 0.3298])
@pytest.mark.parametrize("same", [False, True])
def test_no_farther_than_the_released_search(resnet, target, same):
    scores, graph, cost = resnet.given
    small = {name: score / 10 for name, score in scores.items()}  # what a penalty leaves
    selection = Threshold(target, same_ratio=same)

    def share(threshold):
        return cost.macs(selection.at(threshold, small, graph, cost).removed) / cost.macs()

    (aim,) = selection.select(Scored(small, graph, cost)).aims
    theirs = released(share, target)
    assert abs(aim.reached - target) <= min(abs(one - target) for one in theirs) + 1e-12
    assert abs(theirs[-1] - target) < 0.02  # it is a search


def test_same_ratio_wants_blocks_of_two_matrices():
    message = r"same_ratio=true, but no block has two matrices.*placement=auto"
    with pytest.raises(ConfigError, match=message):
        spread().at(1.0, same_ratio=True)
    case = spread().pair()
    del case.scores["2"]
    with pytest.raises(ConfigError, match=message):
        case.at(1.0, same_ratio=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 0}, r"^keep=0 must be above 0"),
        ({"keep": 1.01}, r"^keep=1\.01 must be at most 1"),
        ({"keep": 0.5, "floor": -0.1}, r"^floor=-0\.1 must be at least 0"),
        ({"keep": 0.5, "floor": 1.1}, r"^floor=1\.1 must be at most 1"),
        ({"keep": 0.5, "floor": "a"}, r"^floor='a' is not a finite number"),
        ({"keep": 0.5, "same_ratio": "yes"}, r"^same_ratio='yes' is unknown"),
    ],
)
def test_bad_settings_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        Threshold(**given)


def test_bad_scores_are_refused():
    case = spread()
    with pytest.raises(ConfigError, match="no group '1'"):
        Threshold(0.5).choose({"1": torch.ones(5)}, case.graph, case.cost)
    with pytest.raises(ConfigError, match="those of 0 are not finite"):
        Threshold(0.5).choose({"0": torch.full((5,), math.nan)}, case.graph, case.cost)
