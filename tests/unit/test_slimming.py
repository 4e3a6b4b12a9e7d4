"""The threshold rules of network slimming, against the released rule in a few lines of numpy."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit
from prunekit.criteria import BatchNormScale
from prunekit.errors import ConfigError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.methods.slimming import InsertChannelSelectors, Slimming
from prunekit.models import DenseNet, PreResNet, vgg19
from prunekit.selection import MacsTarget, Scored


def chain(*widths: int) -> nn.Sequential:
    """Convolutions "0", "3", "6" ... with batch norms, and a last one of two outputs."""
    layers: list[nn.Module] = []
    for before, after in zip((3, *widths), widths, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 2, 1))


class Case:
    """A network whose scales are given, in the order of its layers, and what a selection does."""

    def __init__(self, model: nn.Module, scales: np.ndarray, example=None) -> None:
        example = torch.zeros(1, 3, 8, 8) if example is None else example
        self.model, self.graph = model, ChannelGraph.trace(model, example)
        self.given = self.graph, CostModel(model, self.graph)
        self.scale(scales)

    def scale(self, scales: np.ndarray) -> None:
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        places = np.cumsum([norm.num_features for norm in norms])
        for norm, part in zip(norms, np.split(scales, places[:-1]), strict=True):
            norm.weight = nn.Parameter(torch.tensor(part, dtype=torch.float32))
        self.scores = BatchNormScale().scores(self.model, self.graph, None)

    def choose(self, selection):
        return self.select(selection).keep

    def select(self, selection):
        return selection.select(Scored(self.scores, *self.given))

    def notes(self, selection) -> str:
        return "\n".join(self.select(selection).notes)

    def kept(self, selection) -> dict[str, int]:
        return {name: int(mask.sum()) for name, mask in self.choose(selection).items()}

    def gone(self, selection) -> int:
        return sum(int((~mask).sum()) for mask in self.choose(selection).values())


def released(scales: np.ndarray, ratio: float) -> np.ndarray:
    """The masks of vggprune.py, over all scales in the order of the layers: 1 stays."""
    absolute = np.abs(scales.astype(np.float32))
    threshold = np.sort(absolute)[int(len(absolute) * ratio)]
    return absolute > threshold


def distinct(count: int, seed: int = 0) -> np.ndarray:
    """Scales of both signs whose absolute values differ, also as float32."""
    random = np.random.default_rng(seed)
    return (random.permutation(count) + 1.0) / count * random.choice([-1, 1], count)


WIDTHS = (7, 12, 20, 11)


@pytest.mark.parametrize("ratio", [0, 0.1, 0.29, 0.4, 0.5, 0.58, 0.7])
def test_with_distinct_scales_the_rules_differ_by_one(ratio):
    scales = distinct(50)
    case = Case(chain(*WIDTHS), scales)
    exact, published = (Slimming(ratio, rule=rule) for rule in ("exact", "published"))
    assert case.gone(exact) == int(50 * ratio) and case.gone(published) == int(50 * ratio) + 1
    found = torch.cat([*case.choose(published).values()])
    assert np.array_equal(found.numpy(), released(scales, ratio))
    below = np.sort(np.abs(scales))[: int(50 * ratio)]
    kept = torch.cat([*case.choose(exact).values()]).numpy()
    assert np.array_equal(np.sort(np.abs(scales[~kept])), below)


def test_the_published_ratio_of_vgg19():
    """70 % of the 5,504 scales: the released code removes 3,853 of them."""
    with torch.device("meta"):
        model = vgg19(classes=10)
    case = Case(model, distinct(5504), torch.zeros(1, 3, 32, 32))
    assert len(case.scores) == 16 and sum(map(len, case.scores.values())) == 5504
    assert case.gone(Slimming(0.7)) == 3852
    assert case.gone(Slimming(0.7, rule="published")) == 3853


def test_of_equal_scores_the_later_goes_first_or_all_go():
    scales = np.array([3, 1, 1, 3, 1, 2, 4, 1.0])
    case = Case(chain(4, 4), scales)
    masks = case.choose(Slimming(0.25))
    assert masks["0"].tolist() == [True] * 4 and masks["3"].tolist() == [False, True, True, False]
    ties = Slimming(0.25, rule="published")
    assert torch.cat([*case.choose(ties).values()]).tolist() == released(scales, 0.25).tolist()
    assert case.gone(ties) == 4
    assert "asks for 2 of 8 units; 4 go, because so many are not above 1" in case.notes(ties)
    assert "asked to keep 0.75 of the channels, kept 0.5" in case.notes(ties)


def test_zeros_of_a_proximal_solver():
    """All of them go by the published rule; the exact one stops at its count, and says so."""
    scales = distinct(50)
    scales[::2] = 0
    case = Case(chain(*WIDTHS), scales)
    exact, published = Slimming(0.2), Slimming(0.2, rule="published")
    assert case.gone(exact) == 10 and case.gone(published) == 25
    assert "25 score exactly zero, and selection=zeros takes just those" in case.notes(exact)
    assert "25 go, because so many are not above 0" in case.notes(published)
    assert case.gone(Slimming(0.5)) == 25 and case.notes(Slimming(0.5)) == ""
    (aim,) = case.select(published).aims
    assert (aim.name, aim.asked, aim.reached, aim.met) == ("channels", 0.8, 0.5, True)


@pytest.mark.parametrize("rule", ["exact", "published"])
@pytest.mark.parametrize(("ratio", "most"), [(0.5, 0.5), (0.7, 0.29), (0.3, 1.0), (0.9, 0.58)])
def test_of_no_group_goes_more_than_the_share(rule, ratio, most):
    """Of every layer the lowest go that are below the threshold, but not more than the share."""
    scales = distinct(53, seed=3)
    scales[:10] /= 100  # the first layer is all below
    case = Case(chain(10, 12, 20, 11), scales)
    plain = released(scales, ratio)
    if rule == "exact":
        plain[np.abs(scales).argsort()[int(53 * ratio)]] = True
    masks = case.choose(Slimming(ratio, rule=rule, most=most, on_empty="keep_best"))
    parts = np.split(np.arange(53), np.cumsum([10, 12, 20]))
    for mask, part in zip(masks.values(), parts, strict=True):
        gone = min(int((~plain[part]).sum()), len(part) * int(100 * most + 0.5) // 100)
        lowest = part[np.abs(scales[part]).argsort()[: min(gone, len(part) - 1)]]
        assert set(part[~mask.numpy()]) == set(lowest)


def test_a_share_spares_a_layer_that_would_be_empty():
    case = low(1, 6, 8)
    with pytest.raises(ConfigError, match="would leave nothing"):
        case.choose(Slimming(8 / 14))
    assert case.kept(Slimming(8 / 14, most=0.5))["3"] == 4
    note = case.notes(Slimming(8 / 14, most=0.5))
    assert "asked to keep 0.428571 of the channels, kept 0.714286: the nearest there is" in note
    for most in (0, 1.1):
        with pytest.raises(ConfigError, match=rf"^most={most} must be"):
            Slimming(0.5, most=most)


def test_with_all_scales_equal_the_published_rule_leaves_nothing():
    case = Case(chain(4, 4), np.full(8, 0.5))
    with pytest.raises(ConfigError, match=r"nothing of all 2 groups, whose .* threshold 0\.5;"):
        case.choose(Slimming(0.5, rule="published"))


def low(layer: int, *widths: int) -> Case:
    """A chain in which one layer's scales are below all others."""
    scales = [distinct(width, seed) + 0.0 for seed, width in enumerate(widths)]
    scales[layer] = scales[layer] * 1e-4
    return Case(chain(*widths), np.concatenate(scales))


class TestEmptied:
    """A layer that the threshold leaves with nothing."""

    case = low(1, 8, 6, 30)

    def test_is_refused_by_name_with_the_next_layers_and_the_threshold(self):
        with pytest.raises(ConfigError) as error:
            self.case.choose(Slimming(0.3))
        said = str(error.value)
        assert said.startswith("selection.ratio=0.3 would leave nothing of 3, whose scores")
        level = np.sort(np.concatenate([s.numpy() for s in self.case.scores.values()]))[12]
        assert f"threshold {level:.3g}; next, 6 keeps 24 of 30 (80.0%), " in said
        assert "on_empty=keep_best" in said and "skip_block" in said and "\n" not in said

    @pytest.mark.parametrize("rule", ["exact", "published"])
    def test_keeps_its_best_beside_what_the_threshold_keeps(self, rule):
        for least in (1, 2):
            best = Slimming(0.3, rule=rule, on_empty="keep_best", min_keep=least)
            kept, mask = self.case.kept(best), self.case.choose(best)["3"]
            assert kept["3"] == least
            score = self.case.scores["3"]
            assert float(score[mask].min()) >= float(score[~mask].max())
            above = sum(int(x) for x in kept.values()) - kept["3"]
            assert above == 44 - int(44 * 0.3) - (rule == "published")

    def test_what_was_rescued_is_told(self):
        best = Slimming(0.3, on_empty="keep_best")
        said = self.case.notes(best)
        assert "would have emptied layers; 3 keeps 1 of 6, which is protected" in said
        assert "asked to keep 0.7 of the channels, kept 0.727273: the nearest there is" in said
        assert self.case.select(best).emptied == ("3",)
        fine = replace(best, ratio=0.1)
        assert self.case.select(fine).emptied == ()
        assert self.case.notes(fine) == ""

    def test_goes_whole_for_its_block_to_be_removed(self):
        skip = Slimming(0.3, on_empty="skip_block", min_keep=5)
        assert self.case.kept(skip)["3"] == 0
        assert "nothing is left of 3" in self.case.notes(skip)

    def test_what_keeps_any_keeps_min_keep(self):
        """16 of 44 go, all but one of the first eight units among them."""
        scales = np.concatenate([[9], 1e-4 * np.arange(1, 8), np.arange(1, 7), np.arange(7, 37)])
        case = Case(chain(8, 6, 30), scales)
        for on_empty in ("error", "keep_best", "skip_block"):
            assert case.kept(Slimming(0.2, on_empty=on_empty))["0"] == 1
            assert case.kept(Slimming(0.2, on_empty=on_empty, min_keep=3))["0"] == 3


def test_a_layer_nearly_empty_is_told_before_it_collapses():
    case = Case(chain(30, 4), np.concatenate([[9, 8], np.arange(28) / 99, [7, 6, 5, 4]]))
    assert "nearly empty: 0 keeps 2 of 30" in case.notes(Slimming(28 / 34 + 1e-9))
    assert case.notes(Slimming(0.5)) == ""


def test_budgets_tell_what_they_protect():
    case = low(1, 8, 6, 30)
    said = case.notes(MacsTarget(0.2, normalise=None, scope="global"))
    assert "the scores alone would have emptied layers; 3 keeps 1 of 6, which is protected" in said
    assert "emptied" not in case.notes(MacsTarget(0.2, scope="global"))
    assert "emptied" not in case.notes(MacsTarget(0.2, scope="local"))


class Branches(nn.Module):
    """Two branches beside each other and a layer that is added to both: one group of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.sum = (nn.Conv2d(3, n, 1) for n in (4, 4, 8))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8)])
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        both = torch.cat([self.one(x), self.two(x)], 1) + self.sum(x)
        return self.last(self.norms[0](both))


def test_a_branch_emptied_in_a_group_that_lives():
    case = Case(Branches(), np.array([9, 8, 7, 6, 1, 2, 3, 4.0]))
    with pytest.raises(ConfigError, match="would leave nothing of two, whose scores are not above"):
        case.choose(Slimming(0.5))
    (mask,) = case.choose(Slimming(0.5, on_empty="keep_best")).values()
    assert mask.tolist() == [True] * 4 + [False] * 3 + [True]
    assert "two keeps 1 of 4" in case.notes(Slimming(0.5, on_empty="keep_best"))


def test_a_block_whose_branch_is_emptied_goes_whole():
    """All of its scales are gone then, not only the ones below the threshold."""
    torch.manual_seed(0)
    model = PreResNet(blocks=2, widths=(12, 13, 14))
    example = torch.randn(2, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
    model.layer2[1].bn2.weight.data *= 1e-3
    InsertChannelSelectors.of(model, example).apply(model)
    prune = partial(prunekit.prune, model, example, criterion="bn_scale")
    with pytest.raises(ConfigError, match=r"would leave nothing of layer2\.1\.conv1, whose"):
        prune(selection=Slimming(0.1))
    found = prune(selection=Slimming(0.1, on_empty="skip_block"))
    assert not any("layer2.1." in name for name, _ in found.model.named_modules())
    assert "block layer2.1 was removed whole: its branch was empty" in found.notes
    assert "nothing is left of layer2.1.conv1" in found.notes
    norms = [m for m in found.model.modules() if isinstance(m, nn.BatchNorm2d)]
    scored = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    (aim,) = found.aims
    assert aim.reached == pytest.approx(sum(m.num_features for m in norms) / scored)
    assert aim.asked == 0.9 and aim.reached < 0.85 and aim.met
    rescued = prune(selection=Slimming(0.1, on_empty="keep_best", min_keep=3))
    assert len(rescued.kept["layer2.1.conv1"]) == 3


def test_an_emptied_layer_outside_of_blocks_is_refused():
    case = low(1, 8, 6, 30)
    with pytest.raises(SurgeryError, match=r"\b3\b.*keep_best"):
        prunekit.prune(
            case.model,
            torch.zeros(1, 3, 8, 8),
            selection=Slimming(0.3, on_empty="skip_block"),
            criterion="bn_scale",
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(*WIDTHS),
        lambda: DenseNet(layers=2, growth=3, stem=6),
        lambda: PreResNet(blocks=2, widths=(12, 13, 14)),
    ],
    ids=["chain", "dense", "preresnet"],
)
def test_the_narrow_network_is_the_one_that_the_released_code_masks(make):
    """It sets scale and shift of dropped channels to zero, wherever the norm stands."""
    torch.manual_seed(0)
    model = make().double().eval()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    count = sum(norm.num_features for norm in norms)
    stays = torch.tensor(released(distinct(count), 0.4))
    parts = torch.tensor(distinct(count)).split([norm.num_features for norm in norms])
    for norm, part in zip(norms, parts, strict=True):
        norm.weight.data.copy_(part)
        for tensor in (norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    example = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    opened = copy.deepcopy(model)
    InsertChannelSelectors.of(opened, example).apply(opened)
    rule = Slimming(0.4, rule="published")
    found = prunekit.prune(opened, example, selection=rule, criterion="bn_scale", absorb=False)
    for norm, part in zip(norms, stays.split([len(p) for p in parts]), strict=True):
        norm.weight.data *= part
        norm.bias.data *= part
    kept = sum(m.num_features for m in found.model.modules() if isinstance(m, nn.BatchNorm2d))
    assert kept == int(stays.sum()) == count - int(count * 0.4) - 1
    torch.testing.assert_close(found.model(example), model(example))


def test_ignored_layers_stay_and_do_not_count():
    case = Case(chain(*WIDTHS), distinct(50))
    assert case.gone(Slimming(0.5, ignore=["0"])) == int(43 * 0.5)
    assert case.kept(Slimming(0.5, ignore=["0"]))["0"] == 7


def test_widths_may_be_rounded():
    case = Case(chain(16, 16), distinct(32))
    assert all(n % 4 == 0 for n in case.kept(Slimming(0.4, round_to=4)).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 1.0}, "ratio=1.0 must be below 1"),
        ({"ratio": -0.1}, "ratio=-0.1 must be at least 0"),
        ({"ratio": "half"}, "ratio='half' is not a finite number"),
        ({"rule": "repo"}, "rule='repo' is unknown; accepted: exact, published"),
        ({"on_empty": "skip"}, "on_empty='skip' is unknown; accepted: error, keep_best, skip_b"),
        ({"min_keep": 0}, "min_keep=0 must be at least 1"),
        ({"on_empty": "skip_block", "rounds": 2}, "rounds=2 and .*give rounds=1"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=rf"^{message}"):
        Slimming(**{"ratio": 0.5, **settings})


RANDOM = st.lists(st.integers(0, 9), min_size=14, max_size=14)
RATIO = st.floats(0, 0.999)


class TestLaws:
    """On a chain of 14 scales with ties and zeros."""

    shape = (2, 4, 8)
    case = Case(chain(*shape), np.ones(14))

    @pytest.mark.parametrize("rule", ["exact", "published"])
    @settings(max_examples=30, deadline=None)
    @given(scales=RANDOM, ratios=st.tuples(RATIO, RATIO), least=st.integers(1, 3))
    def test_nested_in_ratio_and_never_empty(self, rule, scales, ratios, least):
        case = self.case
        case.scale(np.array(scales) / 10)
        for on_empty in ("keep_best", "skip_block"):
            more, less = (
                case.choose(Slimming(ratio, rule=rule, on_empty=on_empty, min_keep=least))
                for ratio in sorted(ratios)
            )
            assert all(bool((more[name] | ~less[name]).all()) for name in more)
            for mask in (*more.values(), *less.values()):
                empty = on_empty == "skip_block" and not mask.any()
                assert empty or mask.sum() >= min(least, len(mask))

    @settings(max_examples=50, deadline=None)
    @given(scales=RANDOM, ratio=RATIO)
    def test_the_released_rule_or_a_refusal(self, scales, ratio):
        case = self.case
        case.scale(np.array(scales) / 10)
        stays = released(np.array(scales) / 10, ratio)
        parts = np.split(stays, np.cumsum(self.shape)[:-1])
        empty = [name for name, part in zip(case.scores, parts, strict=True) if not part.any()]
        rule = Slimming(ratio, rule="published")
        if not empty:
            assert torch.cat([*case.choose(rule).values()]).tolist() == stays.tolist()
            return
        names = ", ".join(empty) if stays.any() else "all 3 groups"
        with pytest.raises(ConfigError, match=f"would leave nothing of {names}, "):
            case.choose(rule)
        skipped = case.choose(replace(rule, on_empty="skip_block"))
        assert torch.cat([*skipped.values()]).tolist() == stays.tolist()
        best = case.choose(replace(rule, on_empty="keep_best"))
        for name, part in zip(case.scores, parts, strict=True):
            assert int(best[name].sum()) == max(1, int(part.sum()))

    @settings(max_examples=50, deadline=None)
    @given(order=st.permutations(range(1, 15)), ratio=RATIO)
    def test_without_ties_published_takes_one_more(self, order, ratio):
        case = self.case
        case.scale(np.array(order) / 20)
        exact, published = (
            case.choose(Slimming(ratio, rule=rule, on_empty="skip_block"))
            for rule in ("exact", "published")
        )
        more = sum(int((exact[name] & ~published[name]).sum()) for name in exact)
        assert more == 1 and all(bool((exact[n] | ~published[n]).all()) for n in exact)
