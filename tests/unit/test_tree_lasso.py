"""Trees over columns: weights, prox, dual norm and gradients against plain loops and cvxpy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso import BlockTreeLasso, Tree, TreeLasso
from prunekit.penalties import L1, MCP, Penalty

FIVE = Tree(3, ((0, 1), (2, 3)), torch.tensor([0.7, 0.2], dtype=torch.float64))
KINDS = (TreeLasso, BlockTreeLasso)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similar(seed: int, nodes: int) -> Tensor:
    """Correlations of random profiles, among them near copies."""
    profiles = drawn(seed, nodes, 12)
    profiles[nodes // 2 :] = profiles[: nodes - nodes // 2] + 0.3 * profiles[nodes // 2 :]
    return torch.corrcoef(profiles)


def plain_value(penalty: TreeLasso, rows: Tensor) -> float:
    """Equation 6 as a double loop over rows and nodes, or over nodes for whole columns."""
    blocks = [rows] if isinstance(penalty, BlockTreeLasso) else list(rows.split(1))
    nodes = range(len(penalty.weights))
    return penalty.lam * sum(
        float(penalty.weights[node] * block[:, penalty.tree.members(node)].norm())
        for block in blocks
        for node in nodes
    )


def plain_prox(penalty: TreeLasso, rows: Tensor, step: float) -> Tensor:
    """Group after group in the order of the nodes, which has children before parents."""
    found = rows.clone()
    blocks = [found] if isinstance(penalty, BlockTreeLasso) else list(found.split(1))
    for block in blocks:
        for node in range(len(penalty.weights)):
            columns = penalty.tree.members(node)
            norm = float(block[:, columns].norm())
            short = max(0.0, norm - step * penalty.lam * float(penalty.weights[node]))
            block[:, columns] *= short / norm if norm > 0 else 0
    return found


def test_weights_of_the_published_five_nodes():
    assert torch.allclose(FIVE.weights, torch.tensor([0.14, 0.14, 0.2, 0.06, 0.8]).double())
    assert [FIVE.members(node) for node in range(5)] == [[0], [1], [2], [0, 1], [0, 1, 2]]


@pytest.mark.parametrize("method", ["single", "complete", "average"])
@pytest.mark.parametrize(("cut", "floor"), [(None, 0.0), (0.6, 0.0), (None, 0.2), (0.5, 0.1)])
def test_weights_along_every_path_sum_to_one(method: str, cut: float | None, floor: float):
    tree = Tree.linkage(similar(1, 11), method, cut, floor)
    total = torch.zeros(11, dtype=torch.float64)
    for node, weight in enumerate(tree.weights.tolist()):
        total[tree.members(node)] += weight
    assert torch.allclose(total, torch.ones(11, dtype=torch.float64), atol=1e-12)
    assert bool((tree.weights >= 0).all()) and float(tree.separate.min()) >= floor


def test_a_root_is_not_penalised_and_tight_clusters_are_most():
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[0, 1] = similarity[1, 0] = 0.9
    similarity[2, 3] = similarity[3, 2] = 0.5
    tree = Tree.linkage(similarity)
    assert tree.separate.tolist() == pytest.approx([0.1, 0.5, 1.0])
    assert tree.weights.tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5, 0.9, 0.5, 0.0])
    cut = Tree.linkage(similarity, cut=0.4)  # the looser pair is left out
    assert cut.weights.tolist() == pytest.approx([0.1, 0.1, 1.0, 1.0, 0.9, 0.0, 0.0])


def test_one_column_and_equal_columns_have_trees():
    assert Tree.linkage(torch.ones(1, 1)).weights.tolist() == [1.0]
    copies = Tree.linkage(torch.ones(3, 3))
    assert copies.weights.tolist() == [0, 0, 0, 0, 1]  # all as one group


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [None, 0.3])
@pytest.mark.parametrize("method", ["single", "average"])
def test_value_and_prox_are_those_of_plain_loops(kind: type[TreeLasso], mix, method: str):
    penalty = kind(0.4, Tree.linkage(similar(2, 9), method), mix=mix)
    rows = drawn(3, 6, 9)
    rows[1] = 0
    rows[2, :5] = 0
    assert float(penalty.value(rows)) == pytest.approx(plain_value(penalty, rows))
    for step in (0.1, 1.0, 3.0):
        assert torch.allclose(penalty.prox(rows, step), plain_prox(penalty, rows, step), atol=1e-12)
        again = penalty.prox(rows, step) == 0
        assert torch.equal(again, plain_prox(penalty, rows, step) == 0)


def test_children_of_any_number_and_several_roots():
    tree = Tree(6, ((0, 1, 2), (3, 6)), torch.tensor([0.5, 0.25], dtype=torch.float64))
    penalty = TreeLasso(0.7, tree)
    rows = drawn(4, 5, 6)
    assert penalty.weights.tolist() == pytest.approx([0.125] * 3 + [0.25] + [1, 1, 0.125, 0.75])
    assert torch.allclose(penalty.prox(rows, 0.9), plain_prox(penalty, rows, 0.9), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_prox_is_the_minimiser_by_cvxpy(kind: type[TreeLasso]):
    cvxpy = pytest.importorskip("cvxpy")
    penalty = kind(0.5, Tree.linkage(similar(5, 6)))
    rows = drawn(6, 3, 6)
    u = cvxpy.Variable((3, 6))
    blocks = [u] if kind is BlockTreeLasso else [u[k : k + 1] for k in range(3)]
    groups = [
        weight * cvxpy.norm(cvxpy.vec(block[:, penalty.tree.members(node)], order="F"))
        for block in blocks
        for node, weight in enumerate(penalty.weights.tolist())
    ]
    price = cvxpy.sum_squares(u - rows.numpy()) / (2 * 0.8) + 0.5 * cvxpy.sum(groups)
    cvxpy.Problem(cvxpy.Minimize(price)).solve(solver="CLARABEL", tol_gap_abs=1e-10)
    assert torch.allclose(penalty.prox(rows, 0.8), torch.from_numpy(u.value), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", [None, 0.05])
def test_zero_is_a_solution_from_the_vanishing_strength_on(kind: type[TreeLasso], mix):
    cross = drawn(7, 5, 8)
    penalty = kind(1.0, Tree.linkage(similar(8, 8)), mix=mix)
    top = penalty.vanishing(cross)
    assert not bool(replace(penalty, lam=top).prox(cross, 1.0).any())
    assert bool(replace(penalty, lam=top * (1 - 1e-6)).prox(cross, 1.0).any())
    assert top == pytest.approx(Penalty.vanishing(penalty, cross), rel=1e-8)
    half = replace(penalty, lam=top / 2)
    assert 0.5 * (1 - 1e-3) <= half.feasible(cross) <= 0.5
    assert replace(penalty, lam=top).feasible(cross) == 1.0
    assert penalty.vanishing(0 * cross) == 0


def test_the_dual_norm_bounds_inner_products():
    penalty = TreeLasso(1.0, Tree.linkage(similar(9, 7)))
    cross = drawn(10, 1, 7)
    dual = penalty.vanishing(cross)
    for seed in range(200):
        other = penalty.prox(drawn(seed, 1, 7), 0.5) if seed % 2 else drawn(seed, 1, 7)
        assert float((cross * other).sum()) <= dual * float(penalty.value(other)) * (1 + 1e-8)


def test_rows_without_excess_stay_at_zero():
    penalty = TreeLasso(1.2, Tree.linkage(similar(11, 6)))
    residual = drawn(12, 8, 6)
    alone = torch.tensor([penalty.vanishing(row[None]) for row in residual])
    assert torch.equal(penalty.excess(residual) == 0, alone <= 1.2)
    assert bool(BlockTreeLasso(1.2, penalty.tree).excess(residual).isinf().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entries", [L1, partial(MCP, gamma=3.0)])
def test_gradients_are_finite_differences(kind: type[TreeLasso], entries):
    penalty = kind(0.6, Tree.linkage(similar(13, 7)), entries=entries)
    rows = drawn(14, 4, 7)
    for function, slope in (
        (penalty.value, penalty.subgradient(rows)),
        (partial(smoothed, penalty, mu=0.3), penalty.smooth_pull(rows, 0.3)),
    ):
        for k, j in ((0, 0), (1, 3), (3, 6)):
            moved = rows.clone()
            moved[k, j] += 1e-6
            found = (float(function(moved)) - float(function(rows))) / 1e-6
            assert float(slope[k, j]) == pytest.approx(found, abs=1e-5)


def smoothed(penalty: TreeLasso, rows: Tensor, mu: float) -> float:
    """Inner nodes' part by its definition: max over balls of a product less mu / 2 |alpha|^2."""
    blocks = [rows] if isinstance(penalty, BlockTreeLasso) else list(rows.split(1))
    total = 0.0
    for node in range(penalty.tree.leaves, len(penalty.weights)):
        for block in blocks:
            size = penalty.lam * float(
                penalty.weights[node] * block[:, penalty.tree.members(node)].norm()
            )
            dual = min(1.0, size / mu)
            total += dual * size - mu / 2 * dual**2
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_is_within_its_bound_and_its_curvature(kind: type[TreeLasso]):
    penalty = kind(0.6, Tree.linkage(similar(15, 7)))
    rows = drawn(16, 4, 7)
    inner = float(penalty.value(rows)) - float(
        (penalty.magnitudes(rows) * penalty.slots[:7]).sum() * 0.6
    )
    for mu in (1e-3, 0.1, 10.0):
        assert inner - mu * penalty.spread(4) - 1e-9 <= smoothed(penalty, rows, mu) <= inner + 1e-9
        other = drawn(17, 4, 7)
        apart = penalty.smooth_pull(rows, mu) - penalty.smooth_pull(other, mu)
        assert float(apart.norm()) <= penalty.curvature(mu) * float((rows - other).norm()) * 1.0001


def test_nonconvex_leaves_shrink_by_their_weights_first():
    penalty = TreeLasso(0.5, FIVE, entries=partial(MCP, gamma=4.0))
    rows = drawn(18, 5, 3)
    leaves = torch.stack(
        [
            MCP(0.5, gamma=4.0).prox(rows[:, j : j + 1], 0.9 * float(w))[:, 0]
            for j, w in enumerate(FIVE.weights[:3])
        ],
        dim=1,
    )
    convex = TreeLasso(0.5, Tree(3, FIVE.children, FIVE.separate))
    assert torch.allclose(penalty.prox_entries(rows, 0.9), leaves, atol=1e-12)
    groups = replace(convex, entries=lambda lam: MCP(lam, gamma=1e12))
    assert torch.allclose(groups.prox(rows, 0.9), convex.prox(rows, 0.9), atol=1e-9)
    assert not penalty.convex and penalty.feasible(rows) is None


def test_bad_trees_are_refused():
    with pytest.raises(ConfigError, match="two parents"):
        Tree(3, ((0, 1), (1, 3)), torch.ones(2))
    with pytest.raises(ConfigError, match="must be nodes before it"):
        Tree(3, ((0, 4), (1, 2)), torch.ones(2))
    with pytest.raises(ConfigError, match="between 0 and 1"):
        Tree(2, ((0, 1),), torch.tensor([1.5]))
    with pytest.raises(ConfigError, match="as many weights"):
        Tree(2, ((0, 1),), torch.ones(2))
    with pytest.raises(ConfigError, match="square and finite"):
        Tree.linkage(torch.full((2, 2), torch.nan))
    with pytest.raises(ConfigError, match="method='ward'"):
        Tree.linkage(torch.eye(2), "ward")
    with pytest.raises(ConfigError, match="no penalty of single entries"):
        TreeLasso(0.1, FIVE, entries=lambda lam: FIVE)
