"""Selections on a toy chain whose costs are worked out by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from prunekit.errors import ArtifactError, ConfigError
from prunekit.selection import (
    Budgets,
    Global,
    LikeRun,
    MacsTarget,
    MaxNorm,
    MeanNorm,
    ParamsTarget,
    PerLayer,
    Widths,
    Zeros,
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
        gone = self.drop({}) if drop is None else drop
        left = [1, *(int((~gone[group.units]).sum()) for group in self.groups), 1]
        return itertools.pairwise(left)


CHAIN = Chain({"a": 3, "b": 4})
SCORES = {"a": torch.tensor([0.0, 5.0, 2.0]), "b": torch.tensor([3.0, 0.0, 1.0, 4.0])}


def choose(selection, scores=SCORES, chain=CHAIN):
    found = selection.choose(scores, chain, chain)
    return {name: mask.nonzero().flatten().tolist() for name, mask in found.items()}


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
    with pytest.raises(ConfigError, match=r"selection.keep=11 cannot be reached.* least 12;"):
        choose(MacsTarget(11))
    with pytest.raises(ConfigError, match=r"selection.params=0.1 cannot .* least 0.1579;"):
        choose(Budgets(macs=1.0, params=0.1))
    with pytest.raises(ConfigError, match=r"selection.keep=0.1 cannot .* least 0.2857;"):
        choose(Global(0.1))
    assert choose(MacsTarget(11, min_keep=0)) == {"a": [1], "b": []}


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
    with pytest.raises(ConfigError, match=r"a=0 is below selection\.min_keep=1"):
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
    scores = {"sum": torch.tensor([9.0, 8.0, 1.0, 2.0])}
    for selection in (PerLayer(0.5), Global(0.5), MacsTarget(2), Widths({"sum": 2})):
        assert choose(selection, scores, branched) == {"sum": [0, 3]}
        assert choose(replace(selection, min_keep=0), scores, branched) == {"sum": [0, 1]}
    assert choose(PerLayer(0.01), scores, branched) == {"sum": [0, 3]}
    assert choose(Zeros(), {"sum": torch.tensor([0.0, 8, 0, 0])}, branched) == {"sum": [1, 2]}
    with pytest.raises(ConfigError, match=r"selection\.widths\.sum=1 .* give 2 or more"):
        choose(Widths({"sum": 1}), scores, branched)
    with pytest.raises(ConfigError, match=r"keep=0.25 cannot be reached.* least 0.5"):
        choose(Global(0.25), scores, branched)


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
    ],
)
def test_settings_are_refused_at_construction(make):
    with pytest.raises(ConfigError, match=r"selection\."):
        make()
