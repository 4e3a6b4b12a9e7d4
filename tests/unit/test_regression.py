"""Regressions on tables against cvxpy, scikit-learn, optimality conditions and known limits."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso import (
    FISTA,
    BlockTreeLasso,
    Edges,
    GraphADMM,
    GraphLasso,
    Regression,
    RegressionSolver,
    SmoothingProximalGradient,
    Tree,
    TreeLasso,
    lasso_path,
)
from prunekit.penalties import L1, MCP, Penalty

EXACT = {"tolerance": 1e-8, "of_fit": 1e-6}
SHARES = (0.9, 0.5, 0.15)


class Case:
    """A small problem with its data, whose columns have near copies and, if asked, a sign."""

    def __init__(self, seed: int, inputs: int, outputs: int, signed: bool = False) -> None:
        draw = np.random.default_rng(seed)
        common = draw.normal(size=(40, 1))
        self.x = draw.normal(size=(40, inputs)) + common
        mix = draw.normal(size=(inputs, outputs)) * (draw.random((inputs, outputs)) < 0.5)
        half = outputs // 2
        mix[:, half : 2 * half] = mix[:, :half] * (-1 if signed else 1)
        self.y = self.x @ mix + draw.normal(size=(40, outputs)) + common
        self.x, self.y = (v / np.linalg.norm(v, axis=0) for v in (self.x, self.y))
        tables = self.x.T @ self.x, self.x.T @ self.y, self.y.T @ self.y
        gram, cross, self.similarity = map(torch.from_numpy, tables)
        self.problem = Regression(gram, cross, float(np.square(self.y).sum()))
        self.edges = Edges.top(self.similarity, 2)
        self.tree = Tree.linkage(self.similarity)


CASES = [Case(seed, 3 + seed % 6, 3 + (5 * seed) % 8, signed=seed % 2 == 0) for seed in range(6)]


def at_share(case: Case, penalty_at, share: float) -> Penalty:
    return penalty_at(share * penalty_at(1.0).lam_max(case.problem.cross))


def graph(case: Case, share: float, kappa: float = 0.3) -> GraphLasso:
    return at_share(case, lambda lam: GraphLasso(lam, case.edges, kappa), share)


def objective(case: Case, penalty: Penalty, beta: Tensor) -> float:
    """Half the squared error of the data itself, and the penalty."""
    return 0.5 * float(np.square(case.y - case.x @ beta.numpy()).sum()) + float(penalty.value(beta))


def by_cvxpy(case: Case, penalty: GraphLasso | TreeLasso) -> tuple[Tensor, float]:
    cvxpy = pytest.importorskip("cvxpy")
    inputs, outputs = case.problem.cross.shape
    b = cvxpy.Variable((inputs, outputs))
    if isinstance(penalty, GraphLasso):
        parts = [penalty.lam * cvxpy.sum(cvxpy.abs(b))]
        edges = zip(*(getattr(case.edges, n).tolist() for n in ("first", "second")), strict=True)
        for (m, n), w, s in zip(edges, case.edges.weight, case.edges.sign, strict=True):
            parts.append(penalty.gamma * float(w) * cvxpy.norm1(b[:, m] - float(s) * b[:, n]))
    else:
        blocks = (
            [b] if isinstance(penalty, BlockTreeLasso) else [b[k : k + 1] for k in range(inputs)]
        )
        parts = [
            penalty.lam * w * cvxpy.norm(cvxpy.vec(block[:, penalty.tree.members(node)], order="F"))
            for block in blocks
            for node, w in enumerate(penalty.weights.tolist())
        ]
    price = 0.5 * cvxpy.sum_squares(case.y - case.x @ b) + sum(parts)
    tight = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    cvxpy.Problem(cvxpy.Minimize(price)).solve(solver="CLARABEL", **tight)
    result = torch.from_numpy(np.where(np.abs(b.value) < 1e-7, 0, b.value))
    return result, objective(case, penalty, result)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("case", CASES)
def test_exact_solvers_reach_the_optimum_of_cvxpy(case: Case, share: float):
    tried: list[tuple[RegressionSolver, Penalty]] = [(GraphADMM(**EXACT), graph(case, share))]
    for kind in (TreeLasso, BlockTreeLasso):
        tree = at_share(case, lambda lam, kind=kind: kind(lam, case.tree), share)
        tried.append((FISTA(**EXACT), tree))
    for solver, penalty in tried:
        expected, least = by_cvxpy(case, penalty)
        result = solver.solve(case.problem, penalty)
        assert result.converged and 0 <= result.gap <= 1e-7
        assert result.objective == pytest.approx(objective(case, penalty, result.beta), rel=1e-12)
        assert result.objective <= least * (1 + 1e-6)
        assert torch.equal(result.beta.abs() > 1e-5, expected.abs() > 1e-5)
        assert torch.allclose(result.beta, expected, atol=1e-4)


KAPPAS = (0.01, 0.1, 1.0, 3.0, 30.0)  # from plain l1 to all neighbours alike


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("case", CASES[:3])
def test_entries_are_zero_where_those_of_cvxpy_are_at_any_coupling(case: Case, kappa: float):
    for share in (0.98, 0.6, 0.2):
        penalty = graph(case, share, kappa)
        expected, _ = by_cvxpy(case, penalty)
        result = GraphADMM(**EXACT).solve(case.problem, penalty)
        clear = (expected == 0) | (expected.abs() > 1e-5)
        assert torch.equal((result.beta != 0)[clear], (expected != 0)[clear])


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("solver", [GraphADMM, SmoothingProximalGradient])
def test_the_answer_is_zero_where_nothing_is_better(solver: type[RegressionSolver], kappa: float):
    """A start that is not zero leaves no small entries, which an order of entry would rank."""
    for case in CASES[:3]:
        start = 0.01 * torch.ones_like(case.problem.cross)
        penalty = graph(case, 1.1, kappa)
        assert not bool(solver().solve(case.problem, penalty).beta.any())
        assert not bool(solver().solve(case.problem, penalty, start).beta.any())
        least = GraphADMM().solve(case.problem, graph(case, 0.97, kappa))
        assert least.objective < case.problem.energy / 2 and bool(least.beta.any())


@pytest.mark.parametrize("kappa", [0.03, 0.3, 1.0, 3.0])
def test_a_column_is_non_zero_where_it_is_in_a_solution_that_is_more_exact(kappa: float):
    """Small entries that should be zero would enter the order of columns too early."""
    tight = GraphADMM(tolerance=1e-12, of_fit=1e-9, dense=0.0)
    for case in CASES[1:4]:
        for share in (0.9, 0.6, 0.3):
            penalty = graph(case, share, kappa)
            size = tight.solve(case.problem, penalty).beta.abs().amax(0)
            columns = GraphADMM().solve(case.problem, penalty).beta.any(0)
            clear = (size < 1e-9) | (size > 1e-3)
            assert torch.equal(columns[clear], (size > 1e-3)[clear])


@pytest.mark.parametrize("case", CASES[:3])
def test_smoothing_is_within_its_bound(case: Case):
    for penalty, exact in (
        (graph(case, 0.3), GraphADMM(**EXACT)),
        (at_share(case, lambda lam: TreeLasso(lam, case.tree), 0.3), FISTA(**EXACT)),
    ):
        least = exact.solve(case.problem, penalty).objective
        for mu in (1e-1, 1e-3):
            solver = SmoothingProximalGradient(mu=mu, least_mu=mu, zero=0, tolerance=1e-12)
            result = solver.solve(case.problem, penalty)
            excess = result.objective - least
            assert -1e-9 <= excess <= mu * penalty.smoothing_error(len(case.problem.gram)) + 1e-6
        result = SmoothingProximalGradient().solve(case.problem, penalty)
        assert result.converged and result.objective <= least * (1 + 1e-4)
        columns = (exact.solve(case.problem, penalty).beta != 0).any(dim=0)
        assert torch.equal((result.beta != 0).any(dim=0), columns)


@pytest.mark.parametrize("case", CASES[:4])
def test_gaps_are_never_negative_and_bound_the_excess(case: Case, caplog):
    caplog.set_level(logging.ERROR)
    for solver, penalty in (
        (GraphADMM, graph(case, 0.4)),
        (SmoothingProximalGradient, graph(case, 0.4)),
        (FISTA, at_share(case, lambda lam: TreeLasso(lam, case.tree), 0.4)),
        (SmoothingProximalGradient, at_share(case, lambda lam: TreeLasso(lam, case.tree), 0.4)),
        (FISTA, at_share(case, lambda lam: BlockTreeLasso(lam, case.tree), 0.4)),
        (FISTA, at_share(case, L1, 0.4)),
    ):
        exact = GraphADMM if isinstance(penalty, GraphLasso) else FISTA
        least = exact(**EXACT).solve(case.problem, penalty).objective
        for count in (1, 2, 5, 20, 100):
            result = solver(iterations=count, tolerance=1e-12).solve(case.problem, penalty)
            assert result.gap >= result.objective - least - 1e-9 and result.gap >= 0


def test_without_edges_it_is_the_lasso_of_scikit_learn():
    case = CASES[3]
    empty = Edges.threshold(case.similarity, 2.0)
    for penalty, solver in (
        (GraphLasso(0.05, empty, kappa=0.5), GraphADMM(**EXACT)),
        (GraphLasso(0.05, case.edges, kappa=0.0), GraphADMM(**EXACT)),
        (TreeLasso(0.05, Tree(len(case.similarity), (), torch.ones(0))), FISTA(**EXACT)),
    ):
        result = solver.solve(case.problem, penalty).beta
        model = Lasso(alpha=0.05 / len(case.x), fit_intercept=False, tol=1e-12, max_iter=100_000)
        expected = np.stack([model.fit(case.x, y).coef_ for y in case.y.T], axis=1)
        assert np.allclose(result.numpy(), expected, atol=1e-6)


def test_one_group_is_the_group_lasso():
    """Its conditions: A - G b is lam b / |b| in rows that are not zero, and at most lam long."""
    case = CASES[5]
    outputs = len(case.similarity)
    all_together = Tree(outputs, (tuple(range(outputs)),), torch.zeros(1, dtype=torch.float64))
    assert all_together.weights.tolist() == [0.0] * outputs + [1.0]
    penalty = at_share(case, lambda lam: TreeLasso(lam, all_together), 0.3)
    beta = FISTA(**EXACT).solve(case.problem, penalty).beta
    rows = at_share(case, L1, 0.3)  # the same as a penalty of rows
    assert penalty.lam == pytest.approx(rows.lam)
    assert torch.allclose(beta, FISTA(**EXACT).solve(case.problem, rows).beta, atol=1e-6)
    residual, norms = case.problem.residual(beta), beta.norm(dim=1)
    nonzero = norms > 0
    assert 0 < int(nonzero.sum()) < len(norms)
    expected = penalty.lam * beta[nonzero] / norms[nonzero, None]
    assert torch.allclose(residual[nonzero], expected, atol=1e-5)
    assert bool((residual[~nonzero].norm(dim=1) <= penalty.lam).all())


def test_strong_coupling_makes_all_columns_equal():
    case = Case(11, 5, 6)
    edges = Edges.threshold(case.similarity.abs() + 0.1, 0.0)
    cross = case.problem.cross
    top = float(cross.mean(dim=1).abs().amax())  # where the common column vanishes
    result = GraphADMM(**EXACT).solve(case.problem, GraphLasso(0.9 * top, edges, kappa=100.0)).beta
    assert bool((result != 0).any())
    assert torch.allclose(result, result[:, :1].expand_as(result), atol=1e-7)
    result = GraphADMM(**EXACT).solve(case.problem, GraphLasso(1.01 * top, edges, kappa=100.0)).beta
    assert float(result.abs().amax()) < 1e-7 and 1.01 * top < float(cross.abs().amax())


def test_a_column_of_the_lasso_lives_below_its_largest_similarity():
    case = Case(12, 8, 10)
    largest = case.problem.cross.abs().amax(dim=0)
    empty = Edges.threshold(case.similarity, 2.0)
    for share in np.linspace(0.1, 0.95, 8):
        lam = float(largest.amax() * share)
        beta = GraphADMM(**EXACT).solve(case.problem, GraphLasso(lam, empty, 0.1)).beta
        assert torch.equal((beta != 0).any(dim=0), largest > lam)


def paths(case: Case):
    yield GraphADMM(**EXACT), lambda lam: GraphLasso(lam, case.edges, 0.2)
    yield FISTA(**EXACT), lambda lam: TreeLasso(lam, case.tree)
    yield FISTA(**EXACT), lambda lam: BlockTreeLasso(lam, case.tree)
    yield FISTA(**EXACT), L1


@pytest.mark.parametrize("which", range(4))
def test_a_path_has_the_solutions_of_single_strengths_in_any_order(which: int):
    case = Case(13, 24, 9)
    solver, penalty_at = next(itertools.islice(paths(case), which, None))
    top = penalty_at(1.0).lam_max(case.problem.cross)
    lams = [top * share for share in (1.0, 0.8, 0.3, 0.5, 0.1)]
    for lam, result in zip(lams, lasso_path(case.problem, penalty_at, solver, lams), strict=True):
        alone = solver.solve(case.problem, penalty_at(lam))
        assert result.converged and result.gap <= 1e-7
        assert result.objective == pytest.approx(alone.objective, rel=1e-7)
        assert torch.allclose(result.beta, alone.beta, atol=1e-4)
        assert torch.equal(result.beta.abs() > 1e-5, alone.beta.abs() > 1e-5)
        assert bool((result.beta != 0).any()) == (lam < top)


def test_a_path_solves_small_problems_and_stops_with_its_caller():
    case = Case(14, 40, 6)
    sizes: list[int] = []

    class Spy(FISTA):
        def solve(self, problem: Regression, penalty: Penalty, start: Tensor | None = None):
            sizes.append(len(problem.gram))
            return super().solve(problem, penalty, start)

    penalty = TreeLasso(1.0, case.tree)
    top = penalty.lam_max(case.problem.cross)
    taken: list[float] = []
    strengths = (taken.append(top * 0.9**k) or taken[-1] for k in range(1, 1000))
    path = lasso_path(case.problem, lambda lam: TreeLasso(lam, case.tree), Spy(), strengths)
    for result, _ in zip(path, range(3), strict=False):
        assert max(sizes) <= 2 * int((result.beta != 0).any(dim=1).sum()) + 8
    assert len(taken) <= 4 and max(sizes) < 40


def test_nonconvex_entries_end_in_a_stationary_point():
    """MCP that is nearly convex is near the lasso; one that is not spares large entries."""
    case = Case(15, 5, 6)
    for penalty_at, solver in (
        (lambda lam, e: GraphLasso(lam, case.edges, 0.0, entries=e), GraphADMM(tolerance=1e-9)),
        (lambda lam, e: TreeLasso(lam, case.tree, mix=0.0, entries=e), FISTA(tolerance=1e-9)),
    ):
        lasso = solver.solve(case.problem, penalty_at(0.05, L1)).beta
        near = solver.solve(case.problem, penalty_at(0.05, lambda lam: MCP(lam, gamma=1e9)))
        assert near.gap is None and near.converged
        assert torch.allclose(near.beta, lasso, atol=1e-4)
        beta = solver.solve(case.problem, penalty_at(0.05, lambda lam: MCP(lam, gamma=4.0))).beta
        nonzero = beta != 0
        slope = MCP(0.05, gamma=4.0).slope(beta.abs()) * beta.sign()
        assert torch.allclose(case.problem.residual(beta)[nonzero], slope[nonzero], atol=1e-5)
        assert float(case.problem.residual(beta)[~nonzero].abs().amax()) <= 0.05 + 1e-6


def test_what_does_not_converge_is_said_once(caplog):
    case = CASES[5]
    solver = FISTA(iterations=3, tolerance=1e-12)
    penalty = TreeLasso(0.05, case.tree)
    answers = [solver.solve(case.problem, penalty) for _ in range(3)]
    assert [answer.converged for answer in answers] == [False] * 3
    assert [answer.iterations for answer in answers] == [3] * 3
    assert len(caplog.records) == 1 and "FISTA stopped after 3" in caplog.text


def test_a_path_on_a_graph_says_once_what_does_not_converge(caplog):
    case = CASES[5]
    for dense in (0.0, 1.0):
        caplog.clear()
        solver = GraphADMM(iterations=3, tolerance=1e-12, dense=dense)
        lams = [graph(case, share).lam for share in (0.5, 0.3, 0.1)]
        path = lasso_path(case.problem, lambda lam: GraphLasso(lam, case.edges, 0.3), solver, lams)
        assert not any(result.converged for result in path)
        assert len(caplog.records) == 1 and "GraphADMM stopped" in caplog.text


def test_zero_tables_have_the_zero_solution():
    nothing = Regression(torch.zeros(3, 3).double(), torch.zeros(3, 4).double(), 1.0)
    edges = Edges.top(torch.eye(4), 1)
    for solver, penalty in (
        (FISTA(), L1(0.1)),
        (GraphADMM(), GraphLasso(0.1, edges, 0.1)),
        (SmoothingProximalGradient(), GraphLasso(0.1, edges, 0.1)),
    ):
        result = solver.solve(nothing, penalty)
        assert result.converged and not bool(result.beta.any()) and result.objective == 0.5
        path = lasso_path(nothing, lambda lam, penalty=penalty: penalty, solver, [0.1])
        assert not bool(next(path).beta.any())


def test_misfits_are_refused():
    gram, cross = torch.eye(3).double(), torch.ones(3, 2).double()
    with pytest.raises(ConfigError, match="do not fit"):
        Regression(gram, cross[:2], 1.0)
    with pytest.raises(ConfigError, match="not finite"):
        Regression(gram, cross * torch.nan, 1.0)
    with pytest.raises(ConfigError, match="must be double"):
        Regression(gram.float(), cross.float(), 1.0)
    problem = Regression(gram, cross, 2.0)
    edges = Edges.top(torch.ones(2, 2), 1)
    with pytest.raises(ConfigError, match="FISTA needs prox, which penalty GraphLasso"):
        FISTA().solve(problem, GraphLasso(0.1, edges, 0.1))
    with pytest.raises(ConfigError, match="GraphADMM needs splitting, which penalty TreeLasso"):
        GraphADMM().check(TreeLasso(0.1, Tree.linkage(torch.eye(2))))
    with pytest.raises(ConfigError, match="needs smoothing, which penalty L1"):
        SmoothingProximalGradient().check(L1(0.1))
    with pytest.raises(ConfigError, match="lam=0"):
        next(lasso_path(problem, L1, FISTA(), [0.0]))
    for bad in ({"tolerance": 0.0}, {"iterations": 0}, {"of_fit": -1.0}):
        with pytest.raises(ConfigError):
            FISTA(**bad)
    with pytest.raises(ConfigError, match="below least_mu"):
        SmoothingProximalGradient(mu=1e-7)
    with pytest.raises(ConfigError, match="rho=0"):
        GraphADMM(rho=0)
