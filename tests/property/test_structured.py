"""Structured penalties and their solvers on random graphs, trees and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.methods.gram_lasso import BlockTreeLasso, Edges, GraphLasso, Tree, TreeLasso
from prunekit.methods.gram_lasso.regression import FISTA, GraphADMM, Regression, lasso_path

torch.set_num_threads(1)

seeds = st.integers(0, 10**6)
methods = st.sampled_from(["single", "complete", "average"])
kinds = st.sampled_from([TreeLasso, BlockTreeLasso])


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def similar(seed: int, nodes: int) -> Tensor:
    """Correlations of few profiles: some near 1, some negative."""
    profiles = drawn(seed, 3, 20)[torch.arange(nodes) % 3] + 0.4 * drawn(seed + 1, nodes, 20)
    return torch.corrcoef(profiles).reshape(nodes, nodes)


def tables(seed: int, inputs: int, outputs: int) -> tuple[Regression, Tensor]:
    """A regression whose inputs have much in common, as similarities of channels have."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(60, inputs)) + 1.5 * draw.normal(size=(60, 1))
    y = x @ (draw.normal(size=(inputs, outputs)) * (draw.random((inputs, outputs)) < 0.2))
    y += 2 * draw.normal(size=y.shape)
    x, y = (v / np.linalg.norm(v, axis=0) for v in (x, y))
    gram, cross, among = (torch.from_numpy(table) for table in (x.T @ x, x.T @ y, y.T @ y))
    return Regression(gram, cross, float(outputs)), among


@settings(max_examples=60, deadline=None)
@given(seed=seeds, nodes=st.integers(1, 14), method=methods, floor=st.sampled_from([0.0, 0.05]))
def test_weights_of_any_dendrogram_sum_to_one_on_each_path(seed, nodes, method, floor):
    tree = Tree.linkage(similar(seed, nodes), method, floor=floor)
    total = torch.zeros(nodes, dtype=torch.float64)
    for node, weight in enumerate(tree.weights.tolist()):
        total[tree.members(node)] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(kind=kinds, seed=seeds, nodes=st.integers(1, 9), method=methods, step=st.floats(0.01, 5))
def test_the_prox_of_a_tree_beats_its_neighbours_and_never_expands(kind, seed, nodes, method, step):
    penalty = kind(0.5, Tree.linkage(similar(seed, nodes), method))
    rows, other = drawn(seed + 2, 4, nodes), drawn(seed + 3, 4, nodes)
    found = penalty.prox(rows, step)

    def price(u: Tensor) -> float:
        return float((u - rows).square().sum() / (2 * step) + penalty.value(u))

    for size in (1e-3, 0.1, 1.0):
        for trial in (
            found + size * drawn(seed + 4, 4, nodes),
            found * (1 + size),
            (1 - size) * found,
        ):
            assert price(found) <= price(trial) + 1e-9
    apart = float((found - penalty.prox(other, step)).norm())
    assert apart <= float((rows - other).norm()) * (1 + 1e-9)
    dual = (
        rows - found
    ) / step  # a subgradient: <dual, found> is the value, and no longer dual norm
    assert float((dual * found).sum()) == pytest.approx(float(penalty.value(found)), abs=1e-9)
    assert penalty.vanishing(dual) <= 0.5 * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, nodes=st.integers(2, 12), k=st.integers(1, 4))
def test_the_subgradient_of_a_graph_bounds_its_value_from_below(seed, nodes, k):
    penalty = GraphLasso(0.3, Edges.top(similar(seed, nodes), k), kappa=0.5)
    rows, other = drawn(seed + 2, 3, nodes), drawn(seed + 3, 3, nodes)
    line = float(penalty.value(rows) + (penalty.subgradient(rows) * (other - rows)).sum())
    assert line <= float(penalty.value(other)) + 1e-9


@settings(max_examples=15, deadline=None)
@given(
    seed=seeds,
    kappa=st.sampled_from([0.03, 0.3, 1.0]),
    share=st.sampled_from([0.9, 0.6, 0.3]),
    signed=st.booleans(),
)
def test_a_graph_solved_on_few_entries_is_the_graph_solved_on_all(seed, kappa, share, signed):
    problem, among = tables(seed, 12, 15)
    edges = Edges.top(among if not signed else among * drawn(seed, 15, 15).sign().triu(), 2)
    lam = share * float(problem.cross.abs().amax())
    penalty = GraphLasso(lam, edges, kappa)
    few, all_ = (GraphADMM(dense=d, tolerance=1e-9, of_fit=1e-6) for d in (1.0, 0.0))
    found, expected = few.solve(problem, penalty), all_.solve(problem, penalty)
    assert found.converged and found.gap >= 0
    assert found.objective == pytest.approx(expected.objective, rel=1e-8)
    assert torch.allclose(found.beta, expected.beta, atol=1e-3)
    again = few.solve(problem, penalty, found.beta)
    assert again.converged and again.objective == pytest.approx(found.objective, rel=1e-8)


@settings(max_examples=10, deadline=None)
@given(kind=kinds, seed=seeds, order=st.permutations([0.95, 0.6, 0.4, 0.2]))
def test_gaps_on_a_path_are_those_of_the_whole_problem(kind, seed, order):
    problem, among = tables(seed, 30, 8)
    tree = Tree.linkage(among)
    top = kind(1.0, tree).vanishing(problem.cross)
    lams = [top * share for share in order]
    path = lasso_path(problem, lambda lam: kind(lam, tree), FISTA(), lams)
    for lam, found in zip(lams, path, strict=True):
        exact = FISTA(tolerance=1e-9, of_fit=1e-6).solve(problem, kind(lam, tree))
        assert found.converged
        assert -1e-9 <= found.objective - exact.objective <= found.gap + 1e-9
