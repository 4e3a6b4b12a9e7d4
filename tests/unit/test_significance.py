"""Paired comparisons: the difference by hand, intervals that mean something, verdicts."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from prunekit.errors import ArtifactError
from prunekit.reporting.significance import Comparison, Hits, SeedVariance, holm, paired


def runs(*rows: str) -> Hits:
    """One array a seed, from strings such as "1101"."""
    return {seed: np.array([mark == "1" for mark in row]) for seed, row in enumerate(rows)}


def methods(source: np.random.Generator, count: int, seeds: int, images: int = 300) -> list[Hits]:
    """Results of equally good methods: images differ in difficulty, for each method differently.

    Accuracy also differs between seeds, for all methods alike and for each of them.
    """
    hardness = source.normal(1.5, 1.5, images)
    alike = source.normal(0, 0.1, seeds)
    found = []
    for _ in range(count):
        own = source.normal(0, 0.35, seeds)
        logits = hardness + source.normal(0, 0.5, images) + (alike + own)[:, None]
        right = source.random((seeds, images)) < 1 / (1 + np.exp(-logits))
        found.append(dict(enumerate(right)))
    return found


def percentiles(first: Hits, second: Hits, draws: int = 400) -> bool:
    """Tell whether a percentile bootstrap over seeds and images, as used before, decides.

    Drawing images again is replaced by the normal limit of their mean.
    """
    gaps = np.stack([*second.values()]).astype(float) - np.stack([*first.values()]).astype(float)
    source = np.random.default_rng(0)
    seeds, images = gaps.shape
    picked = source.integers(seeds, size=(draws, seeds))
    weights = np.stack([np.bincount(row, minlength=seeds) for row in picked]) / seeds
    drawn = weights @ gaps
    means = drawn.mean(1) + drawn.std(1) / math.sqrt(images) * source.normal(size=draws)
    low, high = np.quantile(means, [0.025, 0.975])
    return bool(low > 0 or high < 0)


def test_equal_methods_are_rarely_decided():
    """At most 5 % of comparisons may be; bootstrapping three seeds decides more of the same."""
    source, decided, total = np.random.default_rng(0), Counter(), 0
    tables = 50
    for _ in range(tables):
        table = methods(source, 6, seeds=3, images=1000)
        spread = SeedVariance.pooled(table)
        family = [paired(one, table[0], spread) for one in table[1:]]
        decided["one"] += sum(one.verdict != "undecided" for one in family)
        decided["family"] += any(one.verdict != "undecided" for one in holm(family))
        decided["before"] += sum(percentiles(one, table[0]) for one in table[1:])
        total += len(family)
    limit = 0.05 + 2 * math.sqrt(0.05 * 0.95 / total)
    assert decided["one"] / total <= limit
    assert decided["family"] / tables <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / tables)
    assert decided["before"] / total > limit


def test_a_true_difference_is_found():
    """About 24 points between methods of three seeds."""
    source = np.random.default_rng(1)
    found = Counter()
    for _ in range(20):
        table = methods(source, 5, seeds=3, images=1000)
        worse = {
            seed: right & (source.random(len(right)) > 0.3) for seed, right in table[0].items()
        }
        family = [paired(worse, table[1], SeedVariance.pooled([worse, *table[1:]]))]
        found[holm(family)[0].verdict] += 1
    assert found["worse"] >= 15 and found["better"] == 0


def test_the_difference_is_the_mean_error_of_the_first_minus_the_second():
    """3 and 2 of 8 answers are wrong: 12.5 points more errors."""
    found = paired(runs("1100", "1011"), runs("1110", "1101"))
    assert found.difference == pytest.approx(100 * (3 - 2) / 8)
    assert found.low <= found.difference <= found.high and found.seeds == 2


def test_swapping_the_methods_turns_the_sign():
    one, two = runs("11001010", "10111101"), runs("11101110", "11011011")
    there, back = paired(one, two), paired(two, one)
    turned = (-back.difference, -back.high, -back.low, back.p)
    assert (there.difference, there.low, there.high, there.p) == pytest.approx(turned)


def test_equal_runs_have_no_difference_at_all():
    same = runs("1101", "0111")
    found = paired(same, same)
    assert (found.difference, found.p) == (0, 1)
    assert (found.low, found.high) == pytest.approx((0, 0), abs=1e-9)
    assert paired(same, same).verdict == "undecided"


def test_one_pair_of_steady_images_has_the_interval_of_a_paired_t_test():
    """Seeds that differ, and images that all differ alike: only the seeds count."""
    shares = [(600, 500), (640, 520), (620, 560)]
    first, second = (
        {seed: np.arange(1000) % 1000 < pair[side] for seed, pair in enumerate(shares)}
        for side in (0, 1)
    )
    gaps = [(b - a) / 1000 for a, b in shares]
    spread = SeedVariance.pooled([first, second])
    assert spread.freedom == 2 and 2 * spread.variance == pytest.approx(np.var(gaps, ddof=1))
    test = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    found = paired(first, second)
    assert found.difference == pytest.approx(100 * np.mean(gaps))
    assert found.high - found.low >= 100 * (test.high - test.low) * 0.8


def test_the_pooled_variance_is_the_residual_of_an_analysis_of_variance():
    source = np.random.default_rng(2)
    table = source.random((4, 5, 50)) < 0.5
    means = table.mean(2)
    left = means - means.mean(0) - means.mean(1, keepdims=True) + means.mean()
    found = SeedVariance.pooled(dict(enumerate(one)) for one in table)
    assert found.freedom == 12 and found.variance == pytest.approx(np.square(left).sum() / 12)
    ragged = SeedVariance.pooled([dict(enumerate(table[0])), dict(enumerate(table[1][:3]))])
    assert ragged.freedom == 2
    assert SeedVariance.pooled([runs("1101"), runs("0101")]).freedom == 0


def test_one_seed_decides_nothing_unless_others_tell_how_seeds_scatter():
    one, two = runs("1" * 100), runs("0" * 90 + "1" * 10)
    found = paired(one, two)
    assert (found.low, found.high, found.verdict) == (-math.inf, math.inf, "undecided")
    assert paired(one, two, SeedVariance(1e-4, 20)).verdict == "better"


def test_images_and_seeds_both_widen_the_interval():
    """Same mean; in one case half of the images, in the other half of the seeds make it."""
    zeros, ones = np.zeros(200, bool), np.ones(200, bool)
    half = np.arange(200) % 2 == 0
    steady = paired({0: zeros, 1: zeros}, {0: half, 1: half}, SeedVariance(0.0, 30))
    moody = paired({0: zeros, 1: zeros}, {0: ones, 1: zeros})
    assert steady.difference == moody.difference == 50
    assert 0 < steady.high - steady.low < (moody.high - moody.low) / 2
    error = 50 / np.sqrt(199)
    assert steady.high == pytest.approx(50 + stats.t.ppf(0.975, 30) * error)


def test_a_lower_level_gives_a_narrower_interval():
    one, two = methods(np.random.default_rng(3), 2, seeds=3)
    wide, narrow = paired(one, two, level=0.99), paired(one, two, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_only_seeds_that_both_have_are_compared():
    one, two = runs("1100", "1011", "1111"), {2: runs("1010")[0], 0: runs("0110")[0]}
    assert paired(one, two).seeds == 2
    assert paired(one, two).difference == pytest.approx(100 * (0 - 2) / 8)


def test_holm_is_that_of_the_textbook():
    ps = [0.01, 0.04, 0.03, 0.005]
    family = holm([Comparison(1.0, 0.5, 1.5, p, p) for p in ps])
    assert [one.corrected for one in family] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.verdict for one in family] == ["worse", "undecided", "undecided", "worse"]
    assert replace(family[0], difference=-1.0).verdict == "better"
    assert holm([]) == []


@pytest.mark.parametrize("second", [("11", "10"), ()])
def test_runs_that_do_not_match_are_refused(second):
    with pytest.raises(ArtifactError, match="same seeds and test images"):
        paired(runs("110", "011"), runs(*second))
    with pytest.raises(ArtifactError, match="same seeds and test images"):
        paired(runs(*second), runs("110", "011"))
