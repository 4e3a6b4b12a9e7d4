"""Paired comparisons: the difference by hand, intervals that mean something, verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.errors import ArtifactError
from prunekit.reporting.significance import Comparison, paired


def runs(*rows: str) -> list[np.ndarray]:
    """One array a seed, from strings such as "1101"."""
    return [np.array([mark == "1" for mark in row]) for row in rows]


def test_the_difference_is_the_mean_error_of_the_first_minus_the_second():
    """3 and 2 of 8 answers are wrong: 12.5 points more errors."""
    found = paired(runs("1100", "1011"), runs("1110", "1101"))
    assert found.difference == pytest.approx(100 * (3 - 2) / 8)
    assert found.low <= found.difference <= found.high


def test_swapping_the_methods_turns_the_sign():
    one, two = runs("11001010", "10111101"), runs("11101110", "11011011")
    there, back = paired(one, two, seed=3), paired(two, one, seed=3)
    assert there.difference == -back.difference
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=2.0)


def test_equal_runs_have_no_difference_at_all():
    same = runs("1101", "0111")
    assert paired(same, same) == Comparison(0.0, 0.0, 0.0)
    assert paired(same, same).verdict == "undecided"


def test_pairs_decide_where_means_would_not():
    """The second method is right wherever the first one is, and on five more of 1000 images."""
    rng = np.random.default_rng(0)
    first = [rng.random(1000) < 0.5 for _ in range(3)]
    second = [run.copy() for run in first]
    for run in second:
        run[np.flatnonzero(~run)[:5]] = True
    found = paired(first, second)
    assert found.difference == pytest.approx(0.5)
    assert found.verdict == "worse" and paired(second, first).verdict == "better"


def test_the_interval_matches_the_normal_one_on_many_images():
    """One seed: the standard error of a mean of independent differences."""
    rng = np.random.default_rng(1)
    first, second = (rng.random(4000) < 0.9), (rng.random(4000) < 0.9)
    gaps = 100 * (second.astype(float) - first.astype(float))
    error = gaps.std() / np.sqrt(4000)
    found = paired([first], [second])
    assert found.low == pytest.approx(gaps.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(gaps.mean() + 1.96 * error, abs=0.15 * error)


def test_a_lower_level_gives_a_narrower_interval():
    rng = np.random.default_rng(2)
    one, two = ([rng.random(500) < 0.8 for _ in range(3)] for _ in range(2))
    wide, narrow = paired(one, two, level=0.99), paired(one, two, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_seeds_that_disagree_widen_the_interval():
    """Same mean, but the effect of the second case lives in one seed alone."""
    zeros, ones = np.zeros(200, bool), np.ones(200, bool)
    half = np.arange(200) % 2 == 0
    steady = paired([zeros, zeros], [half, half])
    moody = paired([zeros, zeros], [ones, zeros])
    assert steady.difference == moody.difference == 50
    assert moody.high - moody.low > 2 * (steady.high - steady.low)


def test_the_same_seed_gives_the_same_interval():
    one, two = runs("1100"), runs("1010")
    assert paired(one, two, seed=1) == paired(one, two, seed=1)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2, -1, "better"), (1, 2, "worse"), (-1, 1, "undecided"), (0, 1, "undecided")],
)
def test_verdicts(low, high, verdict):
    assert Comparison((low + high) / 2, low, high).verdict == verdict


@pytest.mark.parametrize("second", [("11",), ("110", "011", "111"), ("11", "11"), ()])
def test_runs_that_do_not_match_are_refused(second):
    with pytest.raises(ArtifactError, match="same seeds and test images"):
        paired(runs("110", "011"), runs(*second))


def test_no_runs_are_refused():
    with pytest.raises(ArtifactError, match="same seeds and test images"):
        paired([], [])
