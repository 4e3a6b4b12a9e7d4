"""The order in which columns enter, the strengths that find it, clusters and their best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso import EntryOrder, Hierarchy, PublishedSearch
from prunekit.methods.gram_lasso.criterion import lost_at
from prunekit.methods.gram_lasso.entry import Entered, places, strengths
from prunekit.methods.gram_lasso.regression import FISTA, Regression
from prunekit.penalties import L1

small = st.integers(0, 3)


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=12))
def test_places_go_by_the_first_key_then_by_the_next(keys: list[tuple[int, ...]]) -> None:
    place = places(*(torch.tensor(key, dtype=torch.float64) for key in zip(*keys, strict=True)))
    best_first = sorted(range(len(keys)), key=lambda i: (*(-k for k in keys[i]), i))
    for rank, item in enumerate(best_first):
        expected = 1 - rank / len(keys) if any(keys[item]) else 0
        assert float(place[item]) == pytest.approx(expected)


def entered(entry: list[float]) -> Entered:
    found = Entered.none(torch.ones(len(entry), dtype=torch.float64))
    found.entry.copy_(torch.tensor(entry))
    return found


def test_strengths_fall_until_all_columns_have_entered() -> None:
    entries = entered([0.0, 0.0])
    steps = strengths(1.0, 0.01, 8, entries)
    assert [next(steps) for _ in range(2)] == pytest.approx([0.01 ** (1 / 8), 0.01 ** (2 / 8)])
    entries.entry.fill_(0.01 ** (2 / 8))
    between = next(steps)
    assert 0.01 ** (2 / 8) < between < 0.01 ** (1 / 8), "both entered at the second: look between"


def test_no_more_strengths_are_tried_than_asked_for() -> None:
    assert len(list(strengths(1.0, 0.01, 9, entered([0.0] * 5)))) <= 9


def test_no_strength_is_spent_where_columns_are_told_apart() -> None:
    entries = entered([0.0, 0.0])
    steps = strengths(1.0, 0.01, 20, entries)
    first, second = next(steps), next(steps)
    entries.entry.copy_(torch.tensor([first, second]))
    assert list(steps) == []


def regression(seed: int, inputs: int = 5, outputs: int = 8) -> Regression:
    rng = np.random.default_rng(seed)
    k, y = rng.standard_normal((40, inputs)), rng.standard_normal((40, outputs))
    k, y = (x / np.linalg.norm(x, axis=0) for x in (k, y))
    return Regression(torch.tensor(k.T @ k), torch.tensor(k.T @ y), float(outputs))


LASSO = Hierarchy(mix=0.0).penalty(torch.eye(8, dtype=torch.float64))  # single entries, no groups


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_columns_of_a_lasso_enter_by_their_largest_similarity(seed: int) -> None:
    """A column is alive exactly below its largest absolute similarity."""
    problem = regression(seed)
    found = EntryOrder(points=30).scores(problem, LASSO, FISTA(), "layer")
    assert torch.equal(found.argsort(), problem.cross.abs().amax(0).argsort())


def test_rows_of_one_response_enter_in_the_order_of_its_lasso_path() -> None:
    from sklearn.linear_model import lars_path_gram

    problem = regression(3, inputs=7, outputs=1)
    _, active, _ = lars_path_gram(
        problem.cross[:, 0].numpy(), problem.gram.numpy(), n_samples=1, method="lasso"
    )
    found = EntryOrder(points=40).of_rows(problem, L1, FISTA())
    assert found.argsort(descending=True).tolist()[: len(active)] == active


@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
def test_published_search_finds_a_count_that_a_lasso_has(keep: float) -> None:
    found = PublishedSearch(keep).scores(regression(1), LASSO, FISTA(), "layer")
    assert int((found > 0).sum()) == 8 * keep


def test_published_search_says_what_it_reached(caplog: pytest.LogCaptureFixture) -> None:
    twins = regression(2)
    cross = twins.cross[:, :1].expand(-1, 8).clone()
    found = PublishedSearch(0.5).scores(
        Regression(twins.gram, cross, 8.0), LASSO, FISTA(), "layer3.0.conv1"
    )
    assert int((found > 0).sum()) in (0, 8), "equal columns enter together"
    assert "layer3.0.conv1: " in caplog.text and "asked for 4" in caplog.text


def test_a_bracket_must_be_one() -> None:
    with pytest.raises(ConfigError, match="low=2 is not below high=1"):
        PublishedSearch(low=2, high=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.sampled_from(["average", "complete"]))
def test_the_n_best_representatives_come_from_n_clusters(seed: int, count: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.standard_normal((count, 6))
    similarity = torch.tensor(np.corrcoef(maps))
    worth = torch.tensor(rng.random(count))
    scores = lost_at(similarity, worth, how)
    distance = np.clip(1 - similarity.numpy(), 0, None)
    np.fill_diagonal(distance, 0)
    merges = linkage(squareform(distance, checks=False), how)
    for kept in range(1, count + 1):
        best = scores.argsort(descending=True)[:kept]
        clusters = fcluster(merges, kept, "maxclust")
        assert sorted(clusters[best.numpy()].tolist()) == list(range(1, kept + 1))
        for item in best.tolist():
            mates = np.flatnonzero(clusters == clusters[item])
            assert float(worth[item]) == float(worth[mates].max())
