"""The joint proximal solver: rates, the strength and the stop, each against a hand calculation."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit.errors import ConfigError
from prunekit.methods.hinge import Annealing, Hinge
from prunekit.penalties import L1, L1MinusL2, LogSum, Lp
from prunekit.rows import Rows, Slice
from prunekit.solvers import Proximal

torch.set_num_threads(1)


def matrix(rows, role="", weight=1.0):
    param = nn.Parameter(torch.as_tensor(rows, dtype=torch.float64))
    return Rows(role or "only", (Slice(param),), torch.arange(1, len(rows) + 1), weight, role)


def pair(first=((3.0, 4.0),), second=((0.0, 2.0),)):
    return matrix(list(first), "first"), matrix(list(second), "second")


def optimizer_for(*blocks, lr=0.1, rest=()):
    groups = [{"params": list(block.parameters)} for block in blocks]
    if rest:
        groups.insert(0, {"params": list(rest), "lr": 0.01 * lr})
    return torch.optim.SGD(groups, lr=lr)


def give(block, grad):
    block.slices[0].param.grad = torch.as_tensor(grad, dtype=torch.float64)


def step(solver, optimizer):
    solver.before_step(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    solver.after_step(optimizer)
    return rates


def test_the_first_rate_is_divided_by_the_ratio_of_gradients_to_the_power():
    """Gradient norms 5 and 4: ratio 0.9 * 1.25 + 0.1 * 1 = 1.225, rate 0.1 / 1.225^1.35."""
    first, second = pair()
    solver = Hinge()
    solver.bind(L1(0.0), [first, second])
    optimizer = optimizer_for(first, second)
    give(first, [[3.0, 4.0]])
    give(second, [[0.0, 4.0]])
    rates = step(solver, optimizer)
    assert rates == pytest.approx([0.1 / 1.225**1.35, 0.1])
    assert solver.metrics()["gradient_ratio"] == pytest.approx(1.225)
    moved = torch.tensor([[3.0, 4.0]], dtype=torch.float64) * (1 - rates[0])
    assert torch.allclose(first.read(), moved)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]  # the schedule's again


def test_the_ratio_runs_and_is_clipped_from_the_first_step_on():
    first, second = pair()
    solver = Hinge()
    solver.bind(L1(0.0), [first, second])
    optimizer = optimizer_for(first, second, lr=0.0)
    for ratio, expected in ((10.0, 9 / 5), (1.0, 0.9 + 0.1 * 9 / 5), (0.01, 5 / 9)):
        give(first, [[ratio, 0.0]])
        give(second, [[1.0, 0.0]])
        step(solver, optimizer)
        assert solver.ratio == pytest.approx(expected)


def test_all_rates_but_the_second_matrices_may_be_divided_as_released():
    first, second = pair()
    weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
    for slowed, divided in (("first", [0]), ("all", [1, 0])):
        solver = Hinge(slowed=slowed)
        solver.bind(L1(0.0), [first, second])
        optimizer = optimizer_for(first, second, rest=[weight])
        give(first, [[5.0, 0.0]])
        give(second, [[4.0, 0.0]])
        rates = step(solver, optimizer)
        factor = 1.225**1.35
        expected = (
            [0.001, 0.1 / factor, 0.1] if divided == [0] else [0.001 / factor, 0.1 / factor, 0.1]
        )
        assert rates == pytest.approx(expected)


def test_without_an_exponent_or_a_second_matrix_rates_stay():
    first, second = pair()
    for solver, blocks in ((Hinge(exponent=0), [first, second]), (Hinge(), [first])):
        solver.bind(L1(0.0), blocks)
        optimizer = optimizer_for(*blocks)
        for block in blocks:
            give(block, [[7.0, 0.0]])
        assert set(step(solver, optimizer)) == {0.1}


def test_a_skipped_step_does_not_divide_twice():
    """A gradient scaler that skips a step leaves `after_step` out."""
    first, second = pair()
    solver = Hinge()
    solver.bind(L1(0.0), [first, second])
    optimizer = optimizer_for(first, second)
    give(first, [[5.0, 0.0]])
    give(second, [[4.0, 0.0]])
    solver.before_step(optimizer)
    solver.before_step(optimizer)
    ratio = 0.9 * 1.25 + 0.1 * 1.225
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 / ratio**1.35)
    optimizer.param_groups[0]["lr"] = 0.05  # a schedule of the user's moves on
    solver.after_step(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_matrices_that_share_a_parameter_group_are_refused():
    first, second = pair()
    solver = Hinge()
    solver.bind(L1(0.0), [first, second])
    both = torch.optim.SGD([*first.parameters, *second.parameters], lr=0.1)
    give(first, [[5.0, 0.0]])
    give(second, [[4.0, 0.0]])
    with pytest.raises(ConfigError, match=r"share a parameter group.*solver\.exponent=0"):
        solver.before_step(both)


def test_the_prox_keeps_the_rate_of_the_schedule():
    """Soft threshold of lam * 0.1 on both, whatever the first one's rate was divided by."""
    first, second = pair()
    solver = Hinge()
    solver.bind(L1(2.0), [first, second])
    optimizer = optimizer_for(first, second)
    give(first, [[3.0, 4.0]])
    give(second, [[0.0, 4.0]])
    rates = step(solver, optimizer)
    before = 5.0 * (1 - rates[0])
    assert float(first.read().norm()) == pytest.approx(before - 0.2)
    assert float(second.read().norm()) == pytest.approx(2.0 - 0.4 - 0.2)


@pytest.mark.parametrize(
    ("over", "unit", "at", "expected"),
    [
        ("blocks", "norm", (4.0, 2.0), 0.5),
        ("layers", "norm", (7.0, 6.5), 0.25),
        ("layers", "norm", (5.9, 1.0), 1.0),
        ("blocks", "start", (1.0, 0.5), 0.5),
    ],
)
def test_annealing_divides_lam_at_each_level(over, unit, at, expected):
    """Norms of the first matrices are 5 and 1: 6 over layers, 3 over blocks."""
    blocks = [*pair(), matrix([[1.0, 0.0]], "first"), matrix([[9.0, 0.0]], "second")]
    solver = Hinge(annealing=Annealing(2.0, at, over, unit))
    solver.bind(L1(1.0), blocks)
    optimizer = optimizer_for(*blocks)
    for block in blocks:
        give(block, [[0.0, 0.0]])
    step(solver, optimizer)
    assert solver.metrics()["lam_share"] == expected
    assert float(blocks[3].read().norm()) == pytest.approx(9.0 - 0.1 * expected)


def test_the_second_level_divides_once_more_as_norms_fall():
    """From 5 by 1 a step, levels at 61 % and 31 %: lam is halved at 3, then at 1.5."""
    block = matrix([[3.0, 4.0]])
    solver = Hinge(annealing=Annealing(2.0, (0.61, 0.31)))
    solver.bind(L1(10.0), [block])
    optimizer = optimizer_for(block)
    sizes, shares = [], []
    for _ in range(5):
        give(block, [[0.0, 0.0]])
        step(solver, optimizer)
        sizes.append(float(block.read().norm()))
        shares.append(solver.share)
    assert shares == [1.0, 1.0, 0.5, 0.5, 0.5]
    assert sizes == pytest.approx([4.0, 3.0, 2.5, 2.0, 1.5])
    give(block, [[0.0, 0.0]])
    step(solver, optimizer)
    assert solver.share == 0.25


def test_of_rows_and_columns_of_one_matrix_the_rows_tell_the_norm():
    param = nn.Parameter(torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64))
    rows = Rows("rows", (Slice(param, 1),), torch.arange(1, 3))
    columns = Rows("columns", (Slice(param, 0),), torch.arange(3, 5))
    assert Annealing(over="layers").norm([rows, columns]) == 5.0
    assert Annealing(over="layers").norm([columns, rows]) == 7.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"factor": 0.5}, "factor=0.5 must be at least 1"),
        ({"at": (0.2, 0.5)}, "must fall"),
        ({"at": ()}, "must fall"),
        ({"at": (0.5, 0.0)}, "at=0.0 must be above 0"),
        ({"over": "nets"}, "over='nets' is unknown"),
        ({"unit": "m"}, "unit='m' is unknown"),
    ],
)
def test_settings_of_annealing_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        Annealing(**settings)


def test_a_resumed_run_goes_on_bit_for_bit():
    def fresh():
        torch.manual_seed(0)
        blocks = [matrix(torch.randn(4, 3), role) for role in ("first", "second")]
        solver = Hinge(annealing=Annealing(2.0, (0.9, 0.8)))
        solver.bind(L1(0.5), blocks)
        return blocks, solver, optimizer_for(*blocks)

    def go(blocks, solver, optimizer, steps):
        for number in steps:
            for block in blocks:
                give(block, torch.full((4, 3), 0.1 * (number + 1)))
            step(solver, optimizer)

    whole = fresh()
    go(*whole, range(6))
    half = fresh()
    go(*half, range(3))
    state = copy.deepcopy(half[1].state_dict())
    later = fresh()
    for new, old in zip(later[0], half[0], strict=True):
        new.write(old.read())
    later[1].load_state_dict(state)
    go(*later, range(3, 6))
    for new, old in zip(later[0], whole[0], strict=True):
        assert torch.equal(new.read(), old.read())
    assert later[1].state_dict() == whole[1].state_dict()


def group_lasso(X, Y, lam):
    """By coordinate descent: each row has a closed form, given all others."""
    n, A = len(X), np.zeros((X.shape[1], Y.shape[1]))
    for _ in range(2000):
        for row, x in enumerate(X.T):
            rest = Y - X @ A + np.outer(x, A[row])
            pull = x @ rest / n
            A[row] = max(0.0, 1 - lam / np.linalg.norm(pull)) * pull / (x @ x / n)
    return A


def test_l1_reaches_the_optimum_of_a_convex_problem_solved_independently():
    """min |X W A - Y|^2 / (2 n) + lam sum of row norms of A, W held: a group lasso."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(60, 8, generator=generator, dtype=torch.float64)
    W = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    truth = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    truth[[1, 4]] = 0
    Y = X @ W @ truth + 0.1 * torch.randn(60, 4, generator=generator, dtype=torch.float64)
    lam = 0.4
    param = nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    block = Rows("A", (Slice(param),), torch.arange(1, 7))
    solver = Hinge()
    solver.bind(L1(lam), [block])
    inputs = X @ W
    optimizer = torch.optim.SGD(
        [param], lr=float(60 / torch.linalg.eigvalsh(inputs.T @ inputs).max())
    )
    for _ in range(4000):
        optimizer.zero_grad()
        (F.mse_loss(inputs @ param, Y, reduction="sum") / (2 * 60)).backward()
        step(solver, optimizer)
    A = group_lasso(inputs.numpy(), Y.numpy(), lam)
    value = np.square(inputs.numpy() @ A - Y.numpy()).sum() / 120
    value += lam * np.linalg.norm(A, axis=1).sum()
    fit = float(F.mse_loss(inputs @ block.read(), Y, reduction="sum")) / 120
    found = fit + lam * float(block.read().norm(dim=1).sum())
    assert found == pytest.approx(value, abs=1e-8)
    assert np.allclose(block.read().numpy(), A, atol=1e-6)
    assert ((block.read() == 0).all(dim=1).numpy() == (A == 0).all(axis=1)).all()


@pytest.mark.parametrize(
    "penalty",
    [L1, partial(Lp, p=0.5), L1MinusL2, partial(LogSum, eps=1e-8), partial(LogSum, eps=1.0)],
)
def test_the_prox_is_no_worse_than_zero_or_the_point_or_any_scale(penalty):
    """Where the published formulas give NaN (l1-2) or a worse point (log-sum) too."""
    generator = torch.Generator().manual_seed(1)
    for step_ in (1e-3, 0.05, 0.5):
        for size in (1e-4, 0.05, 1.0):
            rows = size * torch.randn(5, 3, generator=generator, dtype=torch.float64)
            one = penalty(1.0)

            def cost(candidate, rows=rows, one=one, step_=step_):
                return float((candidate - rows).square().sum() / (2 * step_) + one.value(candidate))

            best = cost(one.prox(rows, step_))
            assert math.isfinite(best)
            for _ in range(300):
                scales = torch.rand(5, 1, generator=generator, dtype=torch.float64) * 1.2
                scales *= torch.rand(5, 1, generator=generator) > 0.3
                assert best <= cost(rows * scales) * (1 + 1e-9) + 1e-12


def test_it_is_the_plain_proximal_solver_where_all_is_off():
    blocks = [matrix(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))]
    results = []
    for solver in (Proximal(), Hinge()):
        own = [matrix(block.read()) for block in blocks]
        solver.bind(Lp(0.1), own)
        optimizer = optimizer_for(*own)
        give(own[0], torch.ones(4, 3))
        step(solver, optimizer)
        results.append(own[0].read())
    assert torch.equal(*results)
