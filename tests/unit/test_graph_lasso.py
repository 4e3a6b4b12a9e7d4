"""Edges and the fused lasso on them, against plain loops and matrices."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso import Edges, GraphADMM, GraphLasso, Regression
from prunekit.penalties import L1, MCP, L1MinusL2

SIMILARITY = torch.tensor(
    [
        [1.0, 0.9, 0.2, -0.6],
        [0.9, 1.0, 0.5, 0.1],
        [0.2, 0.5, 1.0, 0.0],
        [-0.6, 0.1, 0.0, 1.0],
    ],
    dtype=torch.float64,
)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def listed(edges: Edges) -> list[tuple[int, int, float, int]]:
    parts = (edges.first, edges.second, edges.weight, edges.sign)
    return [tuple(row) for row in zip(*(part.tolist() for part in parts), strict=True)]


def matrix(edges: Edges) -> Tensor:
    """C of the paper, an edge a row."""
    full = torch.zeros(len(edges.weight), edges.nodes, dtype=torch.float64)
    for row, (first, second, weight, sign) in enumerate(listed(edges)):
        full[row, first], full[row, second] = weight, -sign * weight
    return full


def test_edges_are_taken_once_by_rank_share_or_threshold():
    strong = (0, 1, 0.9, 1)
    assert listed(Edges.threshold(SIMILARITY, 0.5)) == [strong, (0, 3, 0.6, -1), (1, 2, 0.5, 1)]
    assert listed(Edges.threshold(SIMILARITY, 0.95)) == []
    assert listed(Edges.top(SIMILARITY, 1)) == [strong, (0, 3, 0.6, -1), (1, 2, 0.5, 1)]
    assert len(listed(Edges.top(SIMILARITY, 9))) == 5  # the pair without any similarity is no edge
    assert listed(Edges.quantile(SIMILARITY, 1 / 6)) == [strong]
    assert listed(Edges.quantile(SIMILARITY, 0.4)) == [strong, (0, 3, 0.6, -1)]
    assert listed(Edges.quantile(SIMILARITY, 0)) == []


@pytest.mark.parametrize("k", [1, 3, 6])
def test_every_node_keeps_its_nearest(k: int):
    similarity = torch.corrcoef(drawn(1, 20, 30))
    edges = Edges.top(similarity, k)
    pairs = {(first, second) for first, second, *_ in listed(edges)}
    size = np.abs(similarity.numpy()) - 2 * np.eye(20)
    expected = {tuple(sorted((i, int(j)))) for i in range(20) for j in np.argsort(-size[i])[:k]}
    assert pairs == expected


def test_differences_and_their_adjoint_are_those_of_the_matrix():
    edges = Edges.threshold(SIMILARITY, 0.15)
    full, beta, dual = matrix(edges), drawn(2, 6, 4), drawn(3, len(edges.weight), 6)
    assert torch.allclose(edges.differences(beta), full @ beta.T)
    assert torch.allclose(edges.adjoint(dual), dual.T @ full)
    assert torch.allclose(edges.laplacian, full.T @ full)
    assert torch.allclose(edges.degree, full.abs().sum(dim=0))
    values, vectors = edges.spectrum
    assert torch.allclose(vectors * values @ vectors.T, edges.laplacian, atol=1e-12)


def test_the_coupling_is_relative_to_lam_and_degree():
    edges = Edges.threshold(SIMILARITY, 0.5)
    penalty = GraphLasso(0.3, edges, kappa=0.2)
    assert penalty.gamma == pytest.approx(0.2 * 0.3 / (2 * (0.9 + 0.6 + 0.5) / 4))
    assert GraphLasso(0.3, Edges.threshold(SIMILARITY, 2), kappa=0.2).gamma == 0


@pytest.mark.parametrize("entries", [L1, partial(MCP, gamma=2.0)])
def test_the_value_is_that_of_a_plain_loop_and_the_slopes_its_differences(entries):
    edges = Edges.threshold(SIMILARITY, 0.15)
    penalty = GraphLasso(0.3, edges, kappa=0.7, entries=entries)
    beta = drawn(4, 5, 4)
    single, coupling = entries(0.3), 0.0
    for first, second, weight, sign in listed(edges):
        coupling += weight * float((beta[:, first] - sign * beta[:, second]).abs().sum())
    plain = float(single.value(beta.reshape(-1, 1))) + penalty.gamma * coupling
    assert float(penalty.value(beta)) == pytest.approx(plain)
    slope = penalty.subgradient(beta)
    for k, j in ((0, 0), (2, 1), (4, 3)):
        moved = beta.clone()
        moved[k, j] += 1e-7
        result = (float(penalty.value(moved)) - float(penalty.value(beta))) / 1e-7
        assert float(slope[k, j]) == pytest.approx(result, abs=1e-5)
    assert not bool(penalty.subgradient(0 * beta).any())
    assert torch.allclose(
        penalty.prox_entries(beta, 0.8),
        single.prox(beta.reshape(-1, 1), 0.8).reshape(5, 4),
    )


def test_smoothing_has_its_gradient_bound_and_curvature():
    edges = Edges.threshold(SIMILARITY, 0.15)
    penalty = GraphLasso(0.3, edges, kappa=2.0)
    full, beta, other = penalty.gamma * matrix(edges), drawn(5, 5, 4), drawn(6, 5, 4)

    def smoothed(rows: Tensor, mu: float) -> Tensor:
        dual = (rows @ full.T / mu).clamp(-1, 1)
        return (dual * (rows @ full.T)).sum() - mu / 2 * dual.square().sum()

    exact = float((beta @ full.T).abs().sum())
    for mu in (1e-3, 0.1, 10.0):
        assert exact - mu * penalty.smoothing_error(5) <= float(smoothed(beta, mu)) <= exact
        rows = beta.clone().requires_grad_()
        smoothed(rows, mu).backward()
        assert torch.allclose(penalty.smoothed_gradient(beta, mu), rows.grad)
        apart = penalty.smoothed_gradient(beta, mu) - penalty.smoothed_gradient(other, mu)
        assert float(apart.norm()) <= penalty.curvature(mu) * float((beta - other).norm()) * 1.0001


@pytest.mark.parametrize("kappa", [0.0, 0.03, 0.3, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("seed", range(6))
def test_the_largest_strength_is_the_dual_norm_by_brute_force(seed: int, kappa: float):
    """The norm is largest, beside <a, b>, at a b of zeros and signs; here all of them are tried."""
    nodes = 2 + seed
    edges = Edges.top(torch.corrcoef(drawn(seed, nodes, 9)), 1 + seed % 3)
    cross = drawn(seed + 50, 4, nodes)
    cross = cross if seed % 2 else cross.abs()
    penalty = GraphLasso(1.0, edges, kappa)
    signs = torch.tensor([*product((-1.0, 0.0, 1.0), repeat=nodes)], dtype=torch.float64)
    signs = signs[signs.any(1)]
    norms = torch.stack([penalty.value(b[None]) for b in signs])
    expected = float((cross @ signs.T / norms).amax())
    assert penalty.lam_max(cross) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("kappa", [0.03, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_zero_is_the_answer_from_the_largest_strength_on(seed: int, kappa: float):
    edges, cross = Edges.top(torch.corrcoef(drawn(seed, 6, 9)), 2), drawn(seed + 50, 4, 6)
    problem = Regression(torch.eye(4, dtype=torch.float64), cross, float(cross.square().sum()))
    top = GraphLasso(1.0, edges, kappa).lam_max(cross)
    for share, is_zero in ((1.01, True), (0.99, False)):
        solution = GraphADMM().solve(problem, GraphLasso(share * top, edges, kappa))
        assert bool((solution.beta == 0).all()) is is_zero


def test_vanishing_and_excess_are_those_of_the_entries():
    penalty = GraphLasso(0.5, Edges.threshold(SIMILARITY, 0.5), kappa=0.1)
    cross = torch.tensor([[0.1, -0.5, 0.2, 0.0], [0.3, 0.7, -0.9, 0.1]], dtype=torch.float64)
    assert replace(penalty, kappa=0.0).lam_max(cross) == 0.9
    assert (penalty.dual_excess(cross) == 0).tolist() == [True, False]
    assert penalty.dual_scale(cross) == pytest.approx(0.5 / 0.9)
    assert penalty.dual_scale(cross, cross) == 1.0
    bent = replace(penalty, entries=partial(MCP, gamma=3.0))
    assert bent.lam_max(cross) == pytest.approx(0.9) and bent.dual_scale(cross) is None


def test_bad_graphs_are_refused():
    long, one = torch.tensor([0, 1]), torch.ones(2)
    with pytest.raises(ConfigError, match="given twice or is a loop"):
        Edges(long, long.flip(0), one, one, 3)
    with pytest.raises(ConfigError, match="given twice or is a loop"):
        Edges(long, long, one, one, 3)
    with pytest.raises(ConfigError, match="outside the 2 nodes"):
        Edges(long, long + 1, one, one, 2)
    with pytest.raises(ConfigError, match="at least 0 and signs"):
        Edges(long, long + 1, -one, one, 3)
    with pytest.raises(ConfigError, match="as many weights"):
        Edges(long, long + 1, one, one[:1], 3)
    with pytest.raises(ConfigError, match="not square"):
        Edges.top(SIMILARITY[:2], 1)
    with pytest.raises(ConfigError, match="not finite"):
        Edges.top(SIMILARITY * torch.nan, 1)
    edges = Edges.top(SIMILARITY, 1)
    with pytest.raises(ConfigError, match="no closed prox"):
        GraphLasso(0.1, edges, 0.1).prox(drawn(7, 3, 4), 1.0)
    with pytest.raises(ConfigError, match="no penalty of single entries"):
        GraphLasso(0.1, edges, 0.1, entries=L1MinusL2)
