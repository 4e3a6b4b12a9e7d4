"""Laws of selection on random chains of layers, and on real networks with the real cost model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import networks
import pytest
import torch
import torchvision
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.criteria import Random
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.methods.hinge import Threshold
from prunekit.methods.slimming import Slimming
from prunekit.selection import (
    Budgets,
    Global,
    MacsTarget,
    MaxNorm,
    ParamsTarget,
    PerLayer,
    Pool,
    Ranking,
    Scored,
    Widths,
    Zeros,
    protected,
)
from prunekit.surgery import Narrow


@dataclass(frozen=True)
class Chain:
    """Layers in a row with in x out parameters; the multiply-adds of the first count threefold."""

    widths: tuple[int, ...]

    @property
    def groups(self):
        starts = [1, *itertools.accumulate(self.widths, initial=1)][1:]
        return tuple(
            SimpleNamespace(name=f"layer{i}", units=torch.arange(start, start + width))
            for i, (start, width) in enumerate(zip(starts, self.widths, strict=False))
        )

    @property
    def count(self):
        return 1 + sum(self.widths)

    @property
    def outs(self):
        return {g.name: g.units for g in self.groups} | {"last": torch.zeros(3).long()}

    @property
    def ins(self):
        sides = [torch.zeros(2).long(), *(group.units for group in self.groups)]
        return dict(zip(self.outs, sides, strict=True))

    emptied = ChannelGraph.emptied

    def drop(self, chosen):
        return torch.cat([torch.zeros(1).bool(), *(chosen[group.name] for group in self.groups)])

    def params(self, drop=None):
        return self.cost(*self.left(drop))[0]

    def macs(self, drop=None):
        return self.cost(*self.left(drop))[1]

    def left(self, drop):
        gone = torch.zeros(self.count, dtype=torch.bool) if drop is None else drop
        return [int((~gone[group.units]).sum()) for group in self.groups]

    def cost(self, *widths):
        edges = [a * b for a, b in itertools.pairwise((2, *widths, 3))]
        return sum(edges), sum(edges) + 2 * edges[0]


@st.composite
def cases(draw, distinct=False):
    """A chain and a score for every unit, without ties where asked."""
    widths = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    total = sum(widths)
    numbers = st.integers(0, 6) if not distinct else st.integers(0, 10**6)
    flat = draw(st.lists(numbers, min_size=total, max_size=total, unique=distinct))
    parts = torch.tensor(flat, dtype=torch.float64).split(widths)
    chain = Chain(widths)
    return chain, {group.name: part for group, part in zip(chain.groups, parts, strict=True)}


shares = st.floats(0.01, 1.0)


def widths_of(masks):
    return [int(mask.sum()) for mask in masks.values()]


def chosen(selection, case):
    chain, scores = case
    try:
        return selection.choose(scores, chain, chain)
    except ConfigError:
        assume(False)


@pytest.mark.parametrize("kind", [PerLayer, Global, MacsTarget, ParamsTarget])
@given(case=cases(), keeps=st.tuples(shares, shares))
def test_more_kept_means_a_superset(kind, case, keeps):
    less, more = (chosen(kind(keep), case) for keep in sorted(keeps))
    assert all(bool((more[name] | ~less[name]).all()) for name in less)


@pytest.mark.parametrize("kind", [PerLayer, Global, MacsTarget, ParamsTarget])
@given(case=cases(), keep=shares, min_keep=st.integers(1, 3))
def test_no_group_falls_below_min_keep(kind, case, keep, min_keep):
    for mask in chosen(kind(keep, min_keep=min_keep), case).values():
        assert mask.sum() >= min(min_keep, len(mask))


@given(case=cases())
def test_zeros_drops_nothing_that_scores(case):
    for name, mask in chosen(Zeros(), case).items():
        assert bool((mask | (case[1][name] == 0)).all())
        assert mask.sum() == max(1, int((case[1][name] != 0).sum()))


@given(case=cases(), keep=shares)
def test_global_keeps_exactly_the_asked_count(case, keep):
    total = sum(case[0].widths)
    assert sum(widths_of(chosen(Global(keep), case))) == int(keep * total + 0.5)


@given(case=cases(), keep=st.floats(0.01, 1.0))
def test_global_keeps_the_highest_scores(case, keep):
    masks = chosen(Global(keep, min_keep=0), case)
    flat = torch.cat(list(case[1].values()))
    kept = torch.cat(list(masks.values()))
    if kept.any() and not kept.all():
        assert flat[kept].min() >= flat[~kept].max()


@given(case=cases(distinct=True), macs=shares, params=shares)
@example(
    case=(Chain((1, 2)), {"layer0": torch.ones(1), "layer1": torch.tensor([2.0, 3.0])}),
    macs=1.0,
    params=1 - 2**-53,
)
def test_budgets_are_met_by_the_largest_network_of_the_sequence(case, macs, params):
    chain, scores = case
    full = chain.cost(*chain.widths)
    fitting = []
    for cut in (-1.0, *torch.cat(list(scores.values())).tolist()):
        # every threshold, the best unit of each group always staying
        widths = [max(1, int((score > cut).sum())) for score in scores.values()]
        cost = chain.cost(*widths)
        slack = 1 + 1e-12  # a share may be given as a ratio of counts
        if cost[0] <= params * full[0] * slack and cost[1] <= macs * full[1] * slack:
            fitting.append((sum(widths), widths))
    try:
        rule = Budgets(macs=macs, params=params, normalise=None, scope="global")
        found = rule.choose(scores, chain, chain)
    except ConfigError:
        assert not fitting
        return
    assert widths_of(found) == max(fitting)[1]


@given(case=cases(), keep=shares)
def test_with_ties_too_one_unit_more_would_exceed(case, keep):
    chain, scores = case
    masks = chosen(MacsTarget(keep, normalise=None, scope="global"), case)
    budget = keep * chain.cost(*chain.widths)[1] + 1e-6
    assert chain.cost(*widths_of(masks))[1] <= budget
    gone = [float(scores[name][~mask].max()) for name, mask in masks.items() if not mask.all()]
    if gone:
        best = max(gone)
        more = [
            width + (not mask.all() and float(scores[name][~mask].max()) == best)
            for width, (name, mask) in zip(widths_of(masks), masks.items(), strict=True)
        ]
        assert chain.cost(*more)[1] > budget


@dataclass(frozen=True)
class Paired(Chain):
    """The second layer holds the second matrix of the block of the first, if there are two."""

    @property
    def pairs(self):
        return tuple(("layer0", "layer1") for _ in self.widths[1:2])


twentieths = st.integers(0, 20).map(lambda count: Fraction(count, 20))


def at_every_threshold(chain, scores, floor, same):
    """The widths at all thresholds that differ, from the lowest on, in exact numbers."""
    scores = [score.tolist() for score in scores.values()]
    least = [max(1, math.ceil(floor * len(score))) for score in scores]
    for cut in (*sorted({one for score in scores for one in score}), math.inf):
        kept = [max(n, sum(s >= cut for s in of)) for n, of in zip(least, scores, strict=True)]
        if same and len(kept) > 1:
            share = Fraction(kept[0] * len(scores[1]), len(scores[0]))
            kept[1] = max(least[1], math.floor(share + Fraction(1, 2)))
        yield kept


@given(case=cases(), keep=shares, floor=twentieths, same=st.booleans())
@settings(max_examples=150)
def test_of_all_thresholds_the_nearest_share_is_found(case, keep, floor, same):
    chain, scores = Paired(case[0].widths), case[1]
    same = same and len(chain.widths) > 1
    found = [*at_every_threshold(chain, scores, floor, same)]
    priced = [chain.cost(*kept)[1] / chain.macs() for kept in found]
    assert priced == sorted(priced, reverse=True)
    selection = Threshold(keep, floor=float(floor), same_ratio=same)
    if min(priced) > keep + 0.005:
        with pytest.raises(ConfigError, match="cannot be reached"):
            selection.choose(scores, chain, chain)
        return
    masks = selection.choose(scores, chain, chain)
    nearest = min(priced, key=lambda share: (round(abs(share - keep), 12), share))
    assert widths_of(masks) == found[priced.index(nearest)]
    for name, mask in masks.items():
        kept, gone = scores[name][mask], scores[name][~mask]
        assert not len(gone) or kept.min() >= gone.max()
    (aim,) = selection.select(Scored(scores, chain, chain)).aims
    assert (aim.reached, aim.met) == (nearest, abs(nearest - keep) <= 0.005)


@given(
    case=cases(),
    floor=twentieths,
    same=st.booleans(),
    cuts=st.tuples(st.floats(0, 7), st.floats(0, 7)),
)
def test_a_higher_threshold_keeps_a_subset(case, floor, same, cuts):
    chain, scores = Paired(case[0].widths), case[1]
    selection = Threshold(
        0.5, floor=float(floor), same_ratio=same and len(chain.widths) > 1, min_keep=0
    )
    more, less = (selection.at(cut, scores, chain, chain) for cut in sorted(cuts))
    assert all(bool((more[name] | ~less[name]).all()) for name in scores)
    assert all(bool(mask.all()) for mask in selection.at(0, scores, chain, chain).values())
    assert all(int(mask.sum()) >= max(1, math.ceil(floor * len(mask))) for mask in less.values())


@pytest.mark.parametrize("kind", [PerLayer, Global, MacsTarget])
@given(case=cases(distinct=True), keep=shares, order=st.randoms(use_true_random=False))
def test_permuting_units_permutes_the_choice(kind, case, keep, order):
    chain, scores = case
    places = {name: list(range(len(score))) for name, score in scores.items()}
    for place in places.values():
        order.shuffle(place)
    before = chosen(kind(keep), case)
    after = chosen(kind(keep), (chain, {name: s[places[name]] for name, s in scores.items()}))
    assert all(torch.equal(after[name], before[name][places[name]]) for name in scores)


def test_the_real_cost_model_agrees_with_the_budget():
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)
    )
    graph = ChannelGraph.trace(model, torch.zeros(1, 1, 6, 6))
    cost = CostModel(model, graph)
    scores = {
        group.name: torch.rand(len(group.units), generator=torch.Generator().manual_seed(i))
        for i, group in enumerate(graph.groups)
    }
    for keep in (0.2, 0.5, 0.9, 3000):
        masks = MacsTarget(keep).choose(scores, graph, cost)
        first, second = (int(masks[name].sum()) for name in ("0", "2"))
        budget = keep * 2688 if keep <= 1 else keep  # 6 * 9 * 16 + 8 * 54 * 4 + 96 = 2688 in full
        assert first * 9 * 16 + second * first * 9 * 4 + second * 4 * 3 <= budget


ADDED_TO = {"blocks": [["Branches", 8], ["Residual", 8]], "pooled": True, "seed": 0}


def random_scores(graph, seed):
    """Few values, so that there are ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randint(6, (len(group.units),), generator=generator).double()
        for group in graph.groups
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda keep: Zeros(),
        PerLayer,
        Global,
        lambda keep: Global(keep, normalise=MaxNorm()),
        MacsTarget,
        lambda keep: Budgets(macs=keep, params=keep),
        lambda keep: PerLayer(keep, round_to=4),
        lambda keep: MacsTarget(keep, scope="local", round_to=2),
        lambda keep: Slimming(1 - keep, on_empty="keep_best"),
        lambda keep: Slimming(1 - keep, rule="published", on_empty="keep_best", round_to=4),
        lambda keep: Threshold(keep, floor=0.0),
    ],
    ids=[
        *("zeros", "per_layer", "global", "normalised", "macs", "budgets", "rounded", "local"),
        *("slimming", "published", "threshold"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(chosen=networks.settings(), seed=st.integers(0, 99), keep=st.floats(0.05, 0.7))
@example(chosen=ADDED_TO, seed=0, keep=0.3)
def test_no_layer_is_emptied(make, chosen, seed, keep):
    net = networks.Network(**chosen)
    graph = ChannelGraph.trace(net, net.example)
    try:
        masks = make(keep).choose(random_scores(graph, seed), graph, CostModel(net, graph))
    except ConfigError as error:
        assert "cannot be reached" in str(error)
        return
    narrows(net, graph, masks)


@settings(max_examples=40, deadline=None)
@given(chosen=networks.settings(), seed=st.integers(0, 99))
@example(chosen=ADDED_TO, seed=0)
def test_what_is_protected_is_enough_and_can_be_asked_for(chosen, seed):
    net = networks.Network(**chosen)
    graph = ChannelGraph.trace(net, net.example)
    scores = random_scores(graph, seed)
    stays = protected(scores, graph, 1)
    ranking = Ranking(Pool(scores, graph, min_keep=1))
    least = ranking.masks(ranking.steps)
    assert all(torch.equal(least[name], stays[name]) for name in scores)
    widths = {name: int(mask.sum()) for name, mask in stays.items()}
    same = Widths(widths).choose(scores, graph, CostModel(net, graph))
    assert widths == {name: int(mask.sum()) for name, mask in same.items()}
    narrows(net, graph, least)


def narrows(net, graph, masks):
    """Nothing is emptied, and what is left runs."""
    drop = graph.drop({name: ~mask for name, mask in masks.items()})
    assert graph.emptied(drop) == ()
    Narrow.of(graph, drop).apply(net)
    assert net(net.example).isfinite().all()


@pytest.mark.parametrize("kind", [PerLayer, Global, MacsTarget])
@settings(max_examples=15, deadline=None)
@given(chosen=networks.settings(), seed=st.integers(0, 99), keeps=st.tuples(shares, shares))
@example(chosen=ADDED_TO, seed=0, keeps=(0.3, 0.5))
def test_on_networks_too_more_kept_means_a_superset(kind, chosen, seed, keeps):
    net = networks.Network(**chosen)
    graph = ChannelGraph.trace(net, net.example)
    scores, cost = random_scores(graph, seed), CostModel(net, graph)
    try:
        less, more = (kind(keep).choose(scores, graph, cost) for keep in sorted(keeps))
    except ConfigError:
        return
    assert all(bool((more[name] | ~less[name]).all()) for name in scores)


@pytest.mark.parametrize("name", ["vgg16", "resnet50", "densenet121", "mobilenet_v2"])
def test_targets_are_met_within_one_percent(name):
    with torch.device("meta"):
        net = getattr(torchvision.models, name)().eval()
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 224, 224))
    cost = CostModel(net, graph)
    scores = Random().scores(net, graph, None)
    for target, price in ((MacsTarget, cost.macs), (ParamsTarget, cost.params)):
        for keep, scope in itertools.product((0.5, 0.25), ("global", "local")):
            masks = target(keep, scope=scope).choose(scores, graph, cost)
            drop = graph.drop({group: ~mask for group, mask in masks.items()})
            assert 0.99 * keep < price(drop) / price() <= keep
            rounded = target(keep, scope=scope, round_to=8).choose(scores, graph, cost)
            drop = graph.drop({group: ~mask for group, mask in rounded.items()})
            assert 0.8 * keep < price(drop) / price() <= keep
            kept = {group: int(mask.sum()) for group, mask in rounded.items()}
            assert all(n % 8 == 0 or n == len(rounded[group]) for group, n in kept.items())
