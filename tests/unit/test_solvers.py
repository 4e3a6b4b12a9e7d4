"""What solvers promise besides the optimum: zeros, refusals, stop rules, states."""

import logging

import pytest
import torch
from torch import nn

from prunekit.errors import ArtifactError, ConfigError
from prunekit.penalties import L0, L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import ADMM, AULM, Hold, Proximal, Solver, Subgradient, check_fit

torch.set_num_threads(1)


def block_of(rows: list[list[float]], name: str = "layer", weight: float = 1.0) -> Rows:
    param = nn.Parameter(torch.tensor(rows))
    return Rows(name, (Slice(param),), torch.arange(1, len(rows) + 1), weight)


def bound(solver: Solver, *blocks: Rows, penalty=None) -> Solver:
    solver.bind(penalty or L1(0.1), list(blocks))
    return solver


def sgd(*blocks: Rows, lr: float = 0.1, **options) -> torch.optim.SGD:
    return torch.optim.SGD([param for b in blocks for param in b.parameters], lr=lr, **options)


def still(block: Rows, solver: Solver, steps: int, lr: float = 0.0) -> None:
    """Steps in which the loss has no gradient."""
    optimizer = sgd(block, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        solver.before_step(optimizer)
        optimizer.step()
        solver.after_step(optimizer)


def test_subgradient_refuses_l0_and_says_what_to_do():
    with pytest.raises(
        ConfigError,
        match=r"solver Subgradient needs subgradient, which penalty L0 does not offer "
        r"\(only prox\); choose another solver or penalty",
    ):
        check_fit(Subgradient(), L0(0.1))
    with pytest.raises(ConfigError, match="needs subgradient"):
        bound(Subgradient(), block_of([[1.0]]), penalty=L0(0.1))


def test_equal_settings_make_equal_solvers():
    assert AULM(inner=3) == AULM(inner=3) != AULM(inner=4)
    assert Proximal(2) == Proximal(2)
    assert ADMM() != AULM()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AULM(rho=0), "rho=0 must be above 0"),
        (lambda: AULM(inner=0), "inner=0 must be at least 1"),
        (lambda: AULM(r=2.0), "r=2.0 must be at least 3"),
        (lambda: AULM(patience=-1), "patience=-1 must be at least 0"),
        (lambda: AULM(max_outer=1.5), "max_outer=1.5 is not a whole number"),
        (lambda: Proximal(every=0), "every=0 must be at least 1"),
        (lambda: Subgradient(threshold=-1.0), "threshold=-1.0 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


def test_subgradient_adds_the_weighted_slope_to_the_gradient():
    block = block_of([[3.0, 4.0], [0.0, 0.0]], weight=2.0)
    solver = bound(Subgradient(), block)
    block.parameters[0].grad = torch.ones(2, 2)
    solver.before_step(sgd(block))
    expected = torch.tensor([[1 + 0.2 * 0.6, 1 + 0.2 * 0.8], [1.0, 1.0]])
    assert torch.allclose(block.parameters[0].grad, expected)


def test_subgradient_counts_rows_far_below_the_median_as_zero():
    rows = [[1.0, 0.0], [2.0, 0.0], [0.0, 1e-4], [3.0, 1.0]]
    block = block_of(rows)
    solver = bound(Subgradient(threshold=1e-3), block)
    assert (solver.solution()[0] != 0).any(dim=1).tolist() == [True, True, False, True]
    assert block.read()[2, 1] != 0
    solver.finish()
    assert (block.read() != 0).any(dim=1).tolist() == [True, True, False, True]
    untouched = block_of(rows)
    bound(Subgradient(threshold=0), untouched).finish()
    assert torch.equal(untouched.read(), torch.tensor(rows))


def test_proximal_shrinks_by_rate_times_weight_times_every():
    block = block_of([[3.0, 4.0], [0.03, 0.0]], weight=2.0)
    solver, optimizer = bound(Proximal(every=2), block), sgd(block, lr=0.5)
    before = block.read()
    solver.after_step(optimizer)
    assert torch.equal(block.read(), before)
    solver.after_step(optimizer)
    shrink = 0.1 * 0.5 * 2.0 * 2
    assert float(block.read()[0].norm()) == pytest.approx(5 - shrink)
    assert block.read()[1].tolist() == [0, 0]


def test_proximal_uses_the_rate_of_the_owner_and_survives_a_rate_of_zero():
    fast, slow = block_of([[1.0]], "fast"), block_of([[1.0]], "slow")
    solver = bound(Proximal(), fast, slow, penalty=L1(1.0))
    groups = [{"params": fast.parameters, "lr": 0.5}, {"params": slow.parameters, "lr": 0.0}]
    solver.after_step(torch.optim.SGD(groups, lr=1.0))
    assert (float(fast.read()), float(slow.read())) == (0.5, 1.0)


def test_an_optimizer_without_the_parameters_is_refused():
    block, other = block_of([[1.0]], "conv1"), block_of([[1.0]])
    with pytest.raises(ConfigError, match="does not train conv1"):
        bound(Proximal(), block).after_step(sgd(other))


def test_aulm_pulls_to_the_start_before_the_first_outer_step():
    block = block_of([[1.0, 2.0]])
    solver = bound(AULM(rho=2.0), block)
    block.write(torch.tensor([[1.5, 2.0]]))
    solver.before_step(sgd(block))
    assert block.parameters[0].grad.tolist() == [[1.0, 0.0]]


def test_a_row_that_sums_to_zero_is_not_a_zero_row():
    block = block_of([[3.0, -3.0], [0.01, 0.01]])
    solver = bound(AULM(inner=1), block, penalty=L0(0.1))
    still(block, solver, 1)
    solver.finish()
    assert (block.read() != 0).any(dim=1).tolist() == [True, False]


def test_stop_rules_are_off_by_default_and_switched_on_by_numbers():
    rows = [[3.0, 4.0], [0.01, 0.0]]
    block = block_of(rows)
    solver = bound(AULM(inner=1), block, penalty=L0(0.1))
    still(block, solver, 50)
    assert not solver.done
    for rule, steps in (({"max_outer": 4}, 4), ({"patience": 5}, 6), ({"tol": 1e-3}, None)):
        block = block_of(rows)
        solver = bound(AULM(inner=1, **rule), block, penalty=L0(0.1))
        taken = 0
        while not solver.done and taken < 50:
            still(block, solver, 1)
            taken += 1
        assert solver.done
        assert steps is None or taken == steps


def test_an_unchanged_support_without_any_zero_row_does_not_stop():
    block = block_of([[3.0, 4.0], [1.0, 1.0]])
    solver = bound(AULM(inner=1, patience=2), block, penalty=L0(1e-6))
    still(block, solver, 10)
    assert not solver.done


def test_aulm_warns_once_when_the_weights_cannot_follow(caplog: pytest.LogCaptureFixture):
    block = block_of([[3.0, 4.0]])
    with caplog.at_level(logging.WARNING, logger="prunekit"):
        still(block, bound(AULM(inner=10), block), 25, lr=0.001)
    assert len(caplog.records) == 1
    assert "0.01 is below 5" in caplog.text
    assert "raise inner=10 or rho=1" in caplog.text
    caplog.clear()
    still(block, bound(AULM(inner=50), block), 5, lr=0.1)
    assert not caplog.records


def test_metrics_count_rows_and_the_gap():
    block = block_of([[3.0, 4.0], [0.01, 0.0]])
    solver = bound(AULM(inner=1), block, penalty=L1(0.1))
    still(block, solver, 1)
    metrics = solver.metrics()
    assert metrics["rows"] == metrics["rows/layer"] == 1
    assert metrics["penalty"] == pytest.approx(0.49)
    assert metrics["gap"] == pytest.approx((0.01 + 0.0001) ** 0.5 / 5.00001, rel=1e-4)
    assert metrics["outer"] == 1


def test_metrics_tell_which_share_of_the_parameters_is_small():
    scales = block_of([[0.5], [-0.005], [5e-5]], "bn1")
    filters = block_of([[3e-6, 4e-6]], "conv")  # a row is small when its norm is
    metrics = bound(Subgradient(), scales, filters).metrics()
    shares = {key: value for key, value in metrics.items() if key.startswith("below/")}
    assert shares == {
        **{"below/1e-02": 0.75, "below/1e-03": 0.5, "below/1e-04": 0.5},
        **{"below/1e-05": 0.25, "below/1e-06": 0.0},
    }


def test_a_state_of_other_rows_is_refused():
    state = bound(AULM(), block_of([[1.0, 2.0]])).state_dict()
    with pytest.raises(ArtifactError, match=r"state of conv1 is \(1, 2\), not \(2, 2\)"):
        bound(AULM(), block_of([[1.0, 2.0], [1.0, 1.0]], "conv1")).load_state_dict(state)
    two = bound(AULM(), block_of([[1.0, 2.0]]), block_of([[1.0]]))
    with pytest.raises(ArtifactError, match="has 1 blocks of rows, the target 2"):
        two.load_state_dict(state)


def test_hold_keeps_zero_rows_zero_under_momentum_and_weight_decay():
    block = block_of([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]])
    optimizer = sgd(block, momentum=0.9)
    block.parameters[0].grad = torch.ones(3, 2)
    optimizer.step()  # leaves momentum behind in the rows that will be held
    block.write(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]]))
    solver = bound(Hold(), block, penalty=L0(0.0))
    for _ in range(3):
        block.parameters[0].grad = torch.ones(3, 2)
        solver.before_step(optimizer)
        assert block.parameters[0].grad[1].tolist() == [0, 0]
        optimizer.step()
        solver.after_step(optimizer)
        assert block.read()[1].tolist() == [0, 0]
    assert block.read()[2, 0] != 0


def test_hold_restores_its_mask_whatever_it_was_bound_to():
    entries = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    block = Rows("layer", (Slice(entries, None),), torch.zeros(4, dtype=torch.long))
    state = bound(Hold(), block).state_dict()
    block.write(torch.ones(4, 1))
    solver = bound(Hold(), block)
    solver.load_state_dict(state)
    solver.after_step(sgd(block))
    assert entries.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("solver", [AULM(inner=2), Proximal(), Subgradient(), Hold()], ids=str)
def test_solvers_work_where_the_parameters_are(solver: Solver):
    """The meta device stands in for an accelerator: mixing devices fails on it."""
    weight = nn.Parameter(torch.empty(4, 3, device="meta"))
    block = Rows("layer", (Slice(weight, 1),), torch.arange(3))
    if not isinstance(solver, AULM):
        bound(solver, block)
        solver.before_step(sgd(block))
        solver.after_step(sgd(block))
        return
    bound(solver, block)
    for _ in range(4):
        solver.before_step(sgd(block))
        solver.after_step(sgd(block))
