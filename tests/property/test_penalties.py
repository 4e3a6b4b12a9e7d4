"""Every prox is a global minimiser and every subgradient a derivative, without their formulas."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunekit.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    L1MinusL2,
    LogSum,
    Lp,
    Penalty,
    RadialPenalty,
    TransformedL1,
)

torch.set_num_threads(1)

lams = st.floats(1e-3, 3.0)
steps = st.sampled_from([1e-4, 0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 10.0]) | st.floats(1e-3, 20.0)
separable = st.one_of(
    st.builds(L0, lams),
    st.builds(L1, lams),
    st.builds(Lp, lams, st.floats(0.02, 0.98)),
    st.builds(Lp, lams, st.floats(0.02, 0.98), eps=st.floats(1e-6, 2.0)),
    st.builds(TransformedL1, lams, st.floats(0.05, 20.0)),
    st.builds(MCP, lams, st.floats(0.1, 20.0)),
    st.builds(SCAD, lams, st.floats(1.02, 20.0)),
    st.builds(LogSum, lams, st.floats(0.01, 10.0)),
)
smooth = separable.filter(lambda penalty: "subgradient" in penalty.offers)


def price(penalty: Penalty, u: Tensor, v: Tensor, step: float) -> float:
    return float((u - v).square().sum() / (2 * step) + penalty.value(u))


def least(penalty: RadialPenalty, v: float, step: float) -> float:
    """The smallest price of a scalar on a grid over [0, v] that is refined around its best cell."""
    low, high, best = 0.0, v, float("inf")
    for _ in range(4):
        grid = torch.linspace(low, high, 4001, dtype=torch.float64)
        grid = torch.cat([grid, torch.tensor([0.0, v], dtype=torch.float64)])
        prices = (grid - v).square() / (2 * step) + penalty.phi(grid)
        at = int(prices.argmin())
        best = min(best, float(prices[at]))
        width = (high - low) / 4000
        low, high = max(0.0, float(grid[at]) - width), min(v, float(grid[at]) + width)
    return best


@settings(max_examples=250, deadline=None)
@given(penalty=separable, step=steps, data=st.data())
def test_prox_is_a_global_minimiser(penalty: RadialPenalty, step: float, data: st.DataObject):
    scale = penalty.lam * max(1.0, step) * 3
    v = data.draw(st.floats(0.0, 1.0)) * data.draw(st.sampled_from([0.3, 1.0, scale, 5 * scale]))
    row = torch.tensor([[v]], dtype=torch.float64)
    result = price(penalty, penalty.prox(row, step), row, step)
    reference = least(penalty, v, step)
    assert result <= reference + 1e-9 * (1 + abs(reference))


@settings(max_examples=60, deadline=None)
@given(
    lam=lams,
    gamma=st.floats(0.1, 3.0),
    ratio=st.sampled_from([0.5, 0.999, 1.0, 1.001, 1.7, 8.0]),
    v=st.floats(0.0, 6.0),
)
def test_concave_regimes(lam: float, gamma: float, ratio: float, v: float):
    for penalty, step in ((MCP(lam, gamma), gamma * ratio), (SCAD(lam, 1 + gamma), gamma * ratio)):
        row = torch.tensor([[v]], dtype=torch.float64)
        reference = least(penalty, v, step)
        result = price(penalty, penalty.prox(row, step), row, step)
        assert result <= reference + 1e-9 * (1 + abs(reference))


@settings(max_examples=60, deadline=None)
@given(penalty=separable, step=steps, seed=st.integers(0, 10**6))
def test_prox_works_row_by_row_and_keeps_directions(penalty: RadialPenalty, step: float, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(6, 4, generator=draw, dtype=torch.float64) * penalty.lam * 2
    rows[2] = 0
    result = penalty.prox(rows, step)
    norms = penalty.prox(rows.norm(dim=1, keepdim=True), step)
    assert torch.allclose(result.norm(dim=1, keepdim=True), norms, atol=1e-12)
    assert torch.allclose(result * rows.norm(dim=1, keepdim=True), rows * norms, atol=1e-10)
    assert (result[2] == 0).all()
    trial = result + 0.3 * torch.randn(6, 4, generator=draw, dtype=torch.float64) * penalty.lam
    assert price(penalty, result, rows, step) <= price(penalty, trial, rows, step) + 1e-9


def least_l1_minus_l2(lam: float, v: Tensor, step: float) -> float:
    """By support: on each the stationary points of a smooth function, found by fixed points.

    For a support S with |u_S| = n the condition u = v - step lam + step lam u / n is linear in u
    given n, so n solves a scalar equation: all its sign changes on a fine grid are bisected.
    """
    best = float(v.square().sum() / (2 * step))
    for size in range(1, len(v) + 1):
        for support in itertools.combinations(range(len(v)), size):
            w = v[list(support)] - step * lam
            grid = torch.linspace(1e-6, float(v.norm() + step * lam + 1), 4001, dtype=v.dtype)
            scale = 1 / (1 - step * lam / grid)
            lengths = (w[:, None] * scale).norm(dim=0)
            change = ((lengths - grid)[:-1] * (lengths - grid)[1:] <= 0).nonzero().flatten()
            for at in change.tolist():
                low, high = float(grid[at]), float(grid[at + 1])
                for weight in torch.linspace(0, 1, 201).tolist():
                    n = low + weight * (high - low)
                    if abs(n - step * lam) < 1e-12:
                        continue
                    u = torch.zeros_like(v)
                    u[list(support)] = (w / (1 - step * lam / n)).clamp_min(0)
                    cost = (u - v).square().sum() / (2 * step) + lam * (u.sum() - u.norm())
                    best = min(best, float(cost))
            for index in support:
                u = torch.zeros_like(v)
                u[index] = v[index]
                best = min(best, float((u - v).square().sum() / (2 * step)))
    return best


@settings(max_examples=25, deadline=None)
@given(
    lam=st.floats(0.05, 2.0),
    step=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    v=st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0, 1.5, 3.0]), min_size=1, max_size=3),
)
def test_l1_minus_l2_is_minimal_over_supports(lam: float, step: float, v: list[float]):
    penalty, target = L1MinusL2(lam), torch.tensor(v, dtype=torch.float64)
    result = price(penalty, penalty.prox(target[:, None], step), target[:, None], step)
    assert result <= least_l1_minus_l2(lam, target, step) + 1e-8


@settings(max_examples=40, deadline=None)
@given(
    lam=st.floats(0.05, 2.0),
    step=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    ratio=st.sampled_from([0.3, 0.999, 1.0, 1.001, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_l1_minus_l2_beats_a_dense_grid(lam: float, step: float, ratio: float, seed: int):
    """The largest norm is put below, at and above the threshold; two coordinates on a grid."""
    draw = torch.Generator().manual_seed(seed)
    v = torch.rand(2, generator=draw, dtype=torch.float64)
    v = v / v.max() * lam * step * ratio
    axis = torch.linspace(0, float(v.max()) * 1.6, 801, dtype=torch.float64)
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    prices = ((a - v[0]) ** 2 + (b - v[1]) ** 2) / (2 * step) + lam * (a + b - (a**2 + b**2).sqrt())
    penalty = L1MinusL2(lam)
    result = price(penalty, penalty.prox(v[:, None], step), v[:, None], step)
    assert result <= float(prices.min()) + 1e-9


@settings(max_examples=60, deadline=None)
@given(penalty=smooth | st.builds(L1MinusL2, lams), seed=st.integers(0, 10**6))
def test_subgradient_is_autograd_of_value(penalty: Penalty, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, 3, generator=draw, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(penalty.value(rows), rows)
    assert torch.allclose(penalty.subgradient(rows.detach()), gradient, rtol=1e-6, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(penalty=smooth | st.builds(L1MinusL2, lams), seed=st.integers(0, 10**6))
def test_subgradient_agrees_with_finite_differences(penalty: Penalty, seed: int):
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    along = torch.randn(4, 2, generator=draw, dtype=torch.float64)
    h = 1e-6
    slope = (penalty.value(rows + h * along) - penalty.value(rows - h * along)) / (2 * h)
    assert float((penalty.subgradient(rows) * along).sum()) == pytest.approx(
        float(slope), rel=1e-4, abs=2e-4 * penalty.lam
    )


@settings(max_examples=40, deadline=None)
@given(penalty=separable | st.builds(L1MinusL2, lams), step=steps)
def test_float32_in_float32_out_and_zero_rows_stay_zero(penalty: Penalty, step: float):
    rows = torch.tensor([[0.0, 0.0], [0.3, -0.4], [1e-30, 0.0], [3.0, 4.0]])
    for matrix in (rows, torch.zeros(3, 2)):
        for result in (penalty.prox(matrix, step), penalty.subgradient(matrix)):
            assert result.dtype == torch.float32
            assert result.isfinite().all()
            assert (result[0] == 0).all()
