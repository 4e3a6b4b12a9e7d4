"""Selections on a toy chain whose costs are worked out by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph
from prunekit.selection import (
    BudgetResult,
    Budgets,
    Global,
    LikeRun,
    MacsTarget,
    MaxNorm,
    MeanNorm,
    ParamsTarget,
    PerLayer,
    Scored,
    Widths,
    Zeros,
    ignored_groups,
)


@dataclass(frozen=True)
class Chain:
    """A chain from 1 input to 1 output: in x out parameters a layer, ten times the MACs on a."""

    widths: dict[str, int]

    @property
    def groups(self):
        groups, start = [], 1
        for name, width in self.widths.items():
            units = torch.arange(start, start + width)
            groups.append(SimpleNamespace(name=name, units=units, producers=(name,)))
            start += width
        return tuple(groups)

    @property
    def count(self):
        return 1 + sum(self.widths.values())

    @property
    def outs(self):
        return {group.name: group.units for group in self.groups}

    @property
    def ins(self):
        before = [torch.zeros(1).long(), *self.outs.values()]
        return dict(zip(self.widths, before, strict=False))

    emptied = ChannelGraph.emptied

    def drop(self, chosen):
        vector = torch.zeros(self.count, dtype=torch.bool)
        for group in self.groups:
            if group.name in chosen:
                vector[group.units] = chosen[group.name]
        return vector

    def params(self, drop=None):
        return sum(a * b for a, b in self._edges(drop))

    def macs(self, drop=None):
        first, *rest = (a * b for a, b in self._edges(drop))
        return 10 * first + sum(rest)

    def _edges(self, drop):
        removed = self.drop({}) if drop is None else drop
        left = [1, *(int((~removed[group.units]).sum()) for group in self.groups), 1]
        return itertools.pairwise(left)


CHAIN = Chain({"a": 3, "b": 4})
SCORES = {"a": torch.tensor([0.0, 5.0, 2.0]), "b": torch.tensor([3.0, 0.0, 1.0, 4.0])}


def choose(selection, scores=SCORES, chain=CHAIN):
    masks = selection.choose(scores, chain, chain)
    return {name: mask.nonzero().flatten().tolist() for name, mask in masks.items()}


def test_zeros_drops_exact_zeros_and_keeps_a_dead_group_alive():
    assert choose(Zeros()) == {"a": [1, 2], "b": [0, 2, 3]}
    dead = {**SCORES, "a": torch.zeros(3)}
    assert choose(Zeros(), dead)["a"] == [0]
    assert choose(Zeros(min_keep=0), dead)["a"] == []
    assert choose(Zeros(min_keep=9), dead)["a"] == [0, 1, 2]


def test_per_layer_keeps_the_same_share_of_each_group():
    assert choose(PerLayer(0.5)) == {"a": [1, 2], "b": [0, 3]}
    assert choose(PerLayer(0.01)) == {"a": [1], "b": [3]}
    assert choose(PerLayer(1.0)) == {"a": [0, 1, 2], "b": [0, 1, 2, 3]}


def test_global_cuts_all_groups_at_one_threshold():
    assert choose(Global(3 / 7)) == {"a": [1], "b": [0, 3]}
    assert choose(Global(2 / 7)) == {"a": [1], "b": [3]}


def test_ties_are_broken_by_index():
    same = {"a": torch.ones(3), "b": torch.ones(4)}
    assert choose(Global(4 / 7), same) == {"a": [0, 1, 2], "b": [0]}


def test_normalising_makes_groups_comparable():
    scores = {"a": torch.tensor([100.0, 80.0, 10.0]), "b": torch.tensor([1.0, 0.5, 0.9, 0.0])}
    assert choose(Global(4 / 7), scores) == {"a": [0, 1, 2], "b": [0]}
    assert choose(Global(4 / 7, normalise=MaxNorm()), scores) == {"a": [0, 1], "b": [0, 2]}
    means = MeanNorm()({"a": torch.tensor([1.0, -3.0]), "z": torch.zeros(2)})
    assert {name: score.tolist() for name, score in means.items()} == {
        "a": [0.5, -1.5],
        "z": [0, 0],
    }


def test_budgets_by_hand():
    # the order of going is b1 a0 b2 a2 b0; the best units a1 and b3 are protected
    # macs 10 a + a b + b: 46, 42, 29, 26, 14, 12; params a + a b + b: 19, 15, 11, 8, 5, 3
    assert CHAIN.macs() == 46 and CHAIN.params() == 19
    assert choose(MacsTarget(46)) == {"a": [0, 1, 2], "b": [0, 1, 2, 3]}
    assert choose(MacsTarget(41)) == {"a": [1, 2], "b": [0, 2, 3]}
    assert choose(MacsTarget(28 / 46)) == {"a": [1, 2], "b": [0, 3]}
    assert choose(MacsTarget(29 / 46)) == {"a": [1, 2], "b": [0, 2, 3]}
    assert choose(ParamsTarget(5)) == {"a": [1], "b": [0, 3]}
    assert choose(Budgets(macs=42, params=8)) == {"a": [1, 2], "b": [0, 3]}
    assert choose(Budgets(macs=12, params=1.0)) == {"a": [1], "b": [3]}


def test_a_budget_out_of_reach_names_the_smallest():
    with pytest.raises(ConfigError, match=r"selection.keep=11 cannot be reached.* leave 12 to 46;"):
        choose(MacsTarget(11))
    with pytest.raises(ConfigError, match=r"selection.params=0.1 cannot .* leave 0.1579 to 1;"):
        choose(Budgets(macs=1.0, params=0.1))
    with pytest.raises(ConfigError, match=r"selection.keep=0.1 cannot .* leave 0.2858 to 1;"):
        choose(Global(0.1))
    assert choose(MacsTarget(11, min_keep=0, scope="global")) == {"a": [1], "b": []}


def test_groups_without_scores_stay_whole():
    only = {"b": SCORES["b"]}
    for selection in (Zeros(), PerLayer(0.5), Global(0.5), MacsTarget(38)):
        assert choose(selection, only)["a"] == [0, 1, 2]
    assert choose(MacsTarget(38), only)["b"] == [0, 3]


def test_widths_and_their_mistakes():
    assert choose(Widths({"b": 1})) == {"a": [0, 1, 2], "b": [3]}
    with pytest.raises(ConfigError, match="no scores of 'c'; accepted: a, b"):
        choose(Widths({"c": 1}))
    with pytest.raises(ConfigError, match="a=4 is too many, it has 3 units"):
        choose(Widths({"a": 4}))
    with pytest.raises(ConfigError, match=r"a=0 is below min_keep=1"):
        Widths({"a": 0})
    assert choose(Widths({"a": 0}, min_keep=0))["a"] == []


def test_a_layer_that_has_part_of_a_group_keeps_its_best_unit():
    """Branches beside each other, added to: one group of four; `one` and `two` make two each."""
    units = torch.arange(1, 5)
    branched = SimpleNamespace(
        groups=(SimpleNamespace(name="sum", units=units, producers=("sum", "one", "two")),),
        count=5,
        ins={"sum": torch.zeros(1).long(), "one": torch.zeros(1).long(), "last": units},
        outs={"sum": units, "one": units[:2], "two": units[2:], "last": torch.zeros(1).long()},
        drop=lambda chosen: torch.cat([torch.zeros(1).bool(), chosen["sum"]]),
        macs=lambda drop: int((~drop).sum()) - 1,
    )
    branched.emptied = partial(ChannelGraph.emptied, branched)
    scores = {"sum": torch.tensor([9.0, 8.0, 1.0, 2.0])}
    for selection in (PerLayer(0.5), Global(0.5), MacsTarget(2), Widths({"sum": 2})):
        assert choose(selection, scores, branched) == {"sum": [0, 3]}
        assert choose(replace(selection, min_keep=0), scores, branched) == {"sum": [0, 1]}
    assert choose(PerLayer(0.01), scores, branched) == {"sum": [0, 3]}
    assert choose(Zeros(), {"sum": torch.tensor([0.0, 8, 0, 0])}, branched) == {"sum": [1, 2]}
    with pytest.raises(ConfigError, match=r"selection\.widths\.sum=1 .* give 2 or more"):
        choose(Widths({"sum": 1}), scores, branched)
    with pytest.raises(ConfigError, match=r"keep=0.25 cannot be reached.* leave 0.5 to 1"):
        choose(Global(0.25), scores, branched)


WIDE = Chain({"a.one": 12, "a.two": 20, "b": 3})
FALLING = {name: torch.arange(width, 0.0, -1) for name, width in WIDE.widths.items()}


def widths(selection, scores=FALLING, chain=WIDE):
    return [len(kept) for kept in choose(selection, scores, chain).values()]


def test_widths_are_multiples_and_narrow_groups_stay_whole():
    assert widths(PerLayer(0.5)) == [6, 10, 2]
    assert widths(PerLayer(0.5, round_to=4)) == [8, 12, 3]  # halves go up
    assert widths(PerLayer(0.3, round_to=4)) == [4, 8, 3]
    assert widths(PerLayer(0.01, round_to=8)) == [8, 8, 3]
    assert widths(PerLayer(0.95, round_to=8)) == [8, 16, 3]
    assert widths(PerLayer(1.0, round_to=8)) == [12, 20, 3]
    assert widths(PerLayer(0.01, round_to=8, min_keep=9)) == [12, 16, 3]


def test_zeros_are_rounded_so_that_nothing_but_zeros_goes():
    scores = {name: (score > len(score) - 5).double() for name, score in FALLING.items()}
    scores["a.two"][7] = -1.0
    masks = choose(Zeros(round_to=4), scores, WIDE)
    assert [len(kept) for kept in masks.values()] == [8, 8, 3]
    assert masks["a.two"] == [0, 1, 2, 3, 4, 5, 6, 7]


def test_units_that_are_several_channels_count_as_such():
    """A convolution of four groups: a unit is a channel in each, so two units make eight."""
    units = torch.arange(1, 7)
    outs = {"conv": units.repeat(4), "next": torch.zeros(1).long()}
    group = SimpleNamespace(name="conv", units=units, producers=("conv",))
    graph = SimpleNamespace(groups=(group,), count=7, outs=outs, ins={"next": units})
    scores = {"conv": torch.arange(6, 0.0, -1)}
    assert choose(PerLayer(0.45, round_to=8), scores, graph) == {"conv": [0, 1, 2, 3]}
    assert choose(PerLayer(0.45, round_to=4), scores, graph) == {"conv": [0, 1, 2]}


def test_ignored_layers_keep_their_group_whole():
    assert widths(PerLayer(0.5, ignore=["a.*"])) == [12, 20, 2]
    dead = {**FALLING, "a.two": torch.zeros(20)}
    assert widths(Zeros(ignore=["a.*"]), dead) == [12, 20, 3]
    assert widths(MacsTarget(0.9, ignore=["a.two"]))[1] == 20
    assert widths(PerLayer(0.5, ignore=["b"])) == [6, 10, 3]
    with pytest.raises(ConfigError, match=r"ignore: 'a' matches no layer; did you mean a\.\*"):
        choose(PerLayer(0.5, ignore=["a"]), FALLING, WIDE)
    with pytest.raises(ConfigError, match="leaves no group to select from"):
        choose(PerLayer(0.5, ignore=["*"]), FALLING, WIDE)


def test_ignoring_a_layer_whose_outputs_are_fixed_changes_nothing():
    units = torch.arange(1, 5)
    group = SimpleNamespace(name="conv", units=units, producers=("conv",))
    outs = {"conv": units, "bn": units, "fc": torch.zeros(9).long()}
    graph = SimpleNamespace(groups=(group,), count=5, outs=outs, ins={"fc": units})
    assert ignored_groups(graph, ["fc"]) == set()
    assert ignored_groups(graph, ["bn"]) == {"conv"}
    with pytest.raises(ConfigError, match=r"layers: no output channel of 'fc' can be cut"):
        choose(PerLayer(0.5, layers={"fc": 0.5}), {"conv": torch.ones(4)}, graph)


def test_other_shares_for_some_layers_the_first_match_counts():
    assert widths(PerLayer(0.5, layers={"a.two": 0.9, "a.*": 0.25})) == [3, 18, 2]
    with pytest.raises(ConfigError, match=r"layers: 'c' matches no layer; accepted: a\.\*, a\.one"):
        choose(PerLayer(0.5, layers={"c": 0.5}), FALLING, WIDE)


def test_in_the_local_scope_a_budget_keeps_the_same_share_everywhere():
    scores = {name: score * 10**i for i, (name, score) in enumerate(FALLING.items())}
    for keep in (0.2, 0.5, 0.8):
        counts = widths(MacsTarget(keep, scope="local"), scores)
        shares = [count / width for count, width in zip(counts, WIDE.widths.values(), strict=True)]
        assert max(shares[:2]) - min(shares[:2]) < 1 / 12
        drop = WIDE.drop(
            {n: torch.arange(w) >= c for (n, w), c in zip(WIDE.widths.items(), counts, strict=True)}
        )
        assert 0.85 * keep < WIDE.macs(drop) / WIDE.macs() <= keep


def test_budgets_divide_by_the_mean_unless_told_otherwise():
    scores = {"a": SCORES["a"] * 1000, "b": SCORES["b"]}
    rule = MacsTarget(28 / 46, scope="global")
    assert choose(rule, scores) == choose(rule)
    rule = MacsTarget(24 / 46, scope="global", normalise=None)
    assert choose(rule, scores) == {"a": [1, 2], "b": [3]}


def test_rounding_stays_within_the_budget():
    for keep in (0.3, 0.5, 0.7, 0.9):
        selection = MacsTarget(keep, round_to=4)
        masks = selection.choose(FALLING, WIDE, WIDE)
        assert all(len(m) == m.sum() or m.sum() % 4 == 0 for m in masks.values())
        assert WIDE.macs(WIDE.drop({n: ~m for n, m in masks.items()})) <= keep * WIDE.macs()


def test_a_budget_out_of_reach_may_be_missed_and_says_so():
    for selection in (MacsTarget(0.01), Global(0.1), Budgets(macs=0.9, params=0.01)):
        near = replace(selection, on_miss="nearest")
        assert choose(near) == {"a": [1], "b": [3]}
        (note,) = notes(near)
        assert note.startswith("asked to keep 0.") and note.endswith("the nearest there is")
        with pytest.raises(ConfigError, match="on_miss=nearest"):
            choose(selection)
    (result,) = budgets(replace(MacsTarget(11), on_miss="nearest"))
    assert result == BudgetResult("MACs", 11, 12, satisfied=False)
    assert budgets(Global(3 / 7)) == (BudgetResult("channels", 3 / 7, 3 / 7),)


def notes(selection, scores=SCORES, chain=CHAIN):
    return selection.select(Scored(scores, chain, chain)).notes


def budgets(selection, scores=SCORES, chain=CHAIN):
    return selection.select(Scored(scores, chain, chain)).budgets


def test_notes_name_what_was_not_scored_and_what_is_at_its_least():
    assert notes(PerLayer(0.5)) == notes(Global(3 / 7)) == notes(Zeros()) == ()
    assert notes(PerLayer(0.5), {"b": SCORES["b"]}) == ("not scored, so kept whole: a",)
    assert notes(PerLayer(0.5, ignore=["a"]), {"b": SCORES["b"]}) == ()
    assert notes(PerLayer(0.001)) == ("every group keeps the least width: the share is below it",)
    assert notes(PerLayer(0.5, layers={"a": 0.1})) == (
        "a keep the least width: the share is below it",
    )
    assert notes(Widths({"a": 1})) == ()


def write_plan(place, **kept):
    place.mkdir(parents=True)
    groups = {
        name: {"kept": kept[name], "of": width, "indices": []}
        for name, width in CHAIN.widths.items()
    }
    (place / "plan.json").write_text(json.dumps({"groups": groups}))


def test_like_run_repeats_the_widths_of_another_run(tmp_path):
    write_plan(tmp_path / "prune", a=1, b=2)
    for path in (tmp_path, tmp_path / "prune", tmp_path / "prune" / "plan.json"):
        assert choose(LikeRun(path)) == {"a": [1], "b": [0, 3]}
    write_plan(tmp_path / "emptied", a=0, b=4)
    assert choose(LikeRun(tmp_path / "emptied")) == {"a": [], "b": [0, 1, 2, 3]}


def test_like_run_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ArtifactError, match=r"has no prune/plan\.json"):
        LikeRun(tmp_path)
    write_plan(tmp_path / "prune", a=1, b=2)
    with pytest.raises(ArtifactError, match="another network: b has 4 units there and 5 here"):
        choose(
            LikeRun(tmp_path),
            {"a": torch.ones(3), "b": torch.ones(5)},
            Chain({"a": 3, "b": 5}),
        )
    (tmp_path / "prune" / "plan.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no plan of a pruned run"):
        LikeRun(tmp_path)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"conv": torch.ones(3)}, "no group 'conv'; accepted: a, b"),
        ({"a": torch.ones(2)}, r"a has 3 units, its scores have shape \(2,\)"),
        ({"a": torch.tensor([1.0, float("nan"), 0.0])}, "those of a are not finite"),
        ({}, "there are no scores"),
    ],
)
def test_scores_that_do_not_fit_are_refused(scores, message):
    with pytest.raises(ConfigError, match=message):
        choose(Global(0.5), scores)


@pytest.mark.parametrize(
    "make",
    [
        lambda: PerLayer(0),
        lambda: PerLayer(1.5),
        lambda: Global(-0.1),
        lambda: Global("0.5"),
        lambda: MacsTarget(0),
        lambda: MacsTarget(2.5),
        lambda: ParamsTarget(float("inf")),
        lambda: Budgets(macs=0.5, params=0),
        lambda: Zeros(min_keep=-1),
        lambda: Zeros(min_keep=0.2),
        lambda: Widths({"a": 1.5}),
        lambda: Widths(None),
        lambda: PerLayer(0.5, round_to=0),
        lambda: PerLayer(0.5, ignore="layer4.*"),
        lambda: PerLayer(0.5, layers=[0.5]),
        lambda: PerLayer(0.5, layers={"a": 1.5}),
        lambda: MacsTarget(0.5, scope="layer"),
        lambda: MacsTarget(0.5, on_miss="ignore"),
    ],
)
def test_settings_are_refused_at_construction(make):
    with pytest.raises(ConfigError, match=r"^[a-z_.]+(=| is )"):
        make()


def test_in_the_local_scope_no_scale_decides_between_layers():
    """Ranks of layers of other widths are equal, which a mean of them, rounded, must not undo."""
    chain = Chain({"a": 6, "b": 10, "c": 14})
    scores = {n: torch.rand(w, dtype=torch.float64) for n, w in chain.widths.items()}
    for keep in torch.arange(0.2, 1, 0.04).tolist():
        plain = choose(MacsTarget(keep, normalise=None), scores, chain)
        for scale in ("auto", MeanNorm(), MaxNorm()):
            assert choose(MacsTarget(keep, normalise=scale), scores, chain) == plain
